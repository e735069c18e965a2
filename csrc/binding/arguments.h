// What the bindings of all stages share: tensors in, raw pointers out. Only files of this folder know torch: its stable
// ABI (>= 2.10), so one binary serves every later torch and Python. bdkernels.ops has checked the arguments; what is checked
// here is only what memory safety needs.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "../core/score.h"
#include "../core/seen.h"
#include "../cpu/float_mode.h"

namespace bdkernels::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// An operator runs in the default float mode: its own thread between these two, and every thread of the pool in each body.
// Nothing else of this folder may box a function or enter the pool (tests/test_layering.py).
template <auto f>
struct InDefaultMode;

template <class R, class... Args, R (*f)(Args...)>
struct InDefaultMode<f> {
  static R run(Args... args) { return cpu::in_default_mode(*f, static_cast<Args&&>(args)...); }
};

#define BDKERNELS_BOX(f) TORCH_BOX((&InDefaultMode<f>::run))

template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& body) {
  torch::stable::parallel_for(begin, end, grain, [&](int64_t a, int64_t b) { cpu::in_default_mode(body, a, b); });
}

template <class T>
const T* data(const Tensor& t, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == dtype && t.is_contiguous(), "bdkernels: ", name, ": wrong dtype or not contiguous");
  return static_cast<const T*>(t.const_data_ptr());
}

inline const int64_t* longs(const Tensor& t, const char* name) { return data<int64_t>(t, ScalarType::Long, name); }

inline Dtype dtype_of(const Tensor& items) {
  switch (items.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::BFloat16:
      return Dtype::kBfloat16;
    default:
      STD_TORCH_CHECK(false, "bdkernels: items: expected float32, float16 or bfloat16");
  }
}

inline Users users_of(const Tensor& users) { return {data<float>(users, ScalarType::Float, "users"), users.size(0)}; }

inline Items items_of(const Tensor& users, const Tensor& items) {
  STD_TORCH_CHECK(users.dim() == 2 && items.dim() == 2 && users.size(1) == items.size(1), "bdkernels: users, items: shapes");
  STD_TORCH_CHECK(items.stride(1) == 1 || items.size(1) <= 1 || items.size(0) == 0,
                  "bdkernels: items: columns must not be strided");
  return {items.const_data_ptr(), nullptr, dtype_of(items), items.size(0), items.size(1), items.stride(0)};
}

// bias and seen are optional: an empty tensor stands for None.
inline Items items_of(const Tensor& users, const Tensor& items, const Tensor& bias) {
  Items out = items_of(users, items);
  if (bias.numel() == 0) return out;
  STD_TORCH_CHECK(bias.numel() == out.n && bias.is_contiguous() && bias.scalar_type() == items.scalar_type(),
                  "bdkernels: item_bias: must match items");
  out.bias = bias.const_data_ptr();
  return out;
}

inline Seen seen_of(const Tensor& indptr, const Tensor& indices, int64_t rows) {
  if (indptr.numel() == 0) return {nullptr, nullptr};
  STD_TORCH_CHECK(indptr.numel() == rows + 1, "bdkernels: seen.indptr: expected one more than the rows");
  return {longs(indptr, "seen.indptr"), longs(indices, "seen.indices")};
}

}  // namespace bdkernels::binding
