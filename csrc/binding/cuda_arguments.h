// What the bindings of the CUDA stages share. They are built twice: for CUDA tensors, and with BDKERNELS_SIMULATION for CPU
// tensors, whose kernels then run in the simulator (tests/gpu/shim).
#pragma once
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <optional>
#include <tuple>
#include <utility>

#include "../cuda/kernels.h"
#include "arguments.h"

#ifdef BDKERNELS_SIMULATION
#define BDKERNELS_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(bdkernels_cuda, CPU, m)
#else
#define BDKERNELS_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(bdkernels_cuda, CUDA, m)
#endif

namespace bdkernels::binding {

// While it lives, allocations and launches go to the device of a tensor; `stream` is torch's current one there.
class OnDevice {
 public:
#ifdef BDKERNELS_SIMULATION
  explicit OnDevice(const Tensor&) {}
  cuda::Stream stream() const { return nullptr; }
#else
  explicit OnDevice(const Tensor& t) : guard_(t.get_device_index()), device_(t.get_device_index()) {}

  cuda::Stream stream() const {
    // Asked of the loader: this library also loads beside a torch without CUDA, and a weak symbol would stay null for ever.
    using Current = AOTITorchError (*)(int32_t, void**);
    static const Current current = [] {
      void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
      return torch_cuda ? reinterpret_cast<Current>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream")) : nullptr;
    }();
    STD_TORCH_CHECK(current != nullptr, "bdkernels: this torch has no CUDA");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(current(device_, &stream));
    return static_cast<cuda::Stream>(stream);
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  int32_t device_;
#endif
};

template <class T>
T* out_of(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// [n] int64 at least, and those that may be changed.
inline const int64_t* longs_of(const Tensor& t, int64_t n, const char* name) {
  STD_TORCH_CHECK(t.numel() >= n, "bdkernels: ", name, ": wrong shape");
  return longs(t, name);
}

inline int64_t* longs_of(Tensor& t, int64_t n, const char* name) {
  longs_of(static_cast<const Tensor&>(t), n, name);
  return out_of<int64_t>(t);
}

// What may be absent is so without an allocation.
using Optional = std::optional<Tensor>;

inline Items items_of(const Tensor& users, const Tensor& items, const Optional& bias) {
  return bias ? items_of(users, items, *bias) : items_of(users, items);
}

inline Seen seen_of(const Optional& indptr, const Optional& indices, int64_t rows) {
  return indptr && indices ? seen_of(*indptr, *indices, rows) : Seen{nullptr, nullptr};
}

// Scratch memory of several arrays, counts[i] of each type, in one allocation, which is given first and has to be kept until
// the kernels are queued. An array begins at a multiple of 16 bytes, as tables of torch do. What passes the end of the last
// one passes that of the allocation, where a sanitizer sees it.
template <class... T>
std::tuple<Tensor, T*...> scratch(const Tensor& like, const int64_t (&counts)[sizeof...(T)]) {
  constexpr int64_t sizes[] = {sizeof(T)...};
  int64_t begins[sizeof...(T)], end = 0;
  for (size_t i = 0; i < sizeof...(T); ++i) {
    begins[i] = (end + 15) / 16 * 16;
    end = begins[i] + counts[i] * sizes[i];
  }
  Tensor memory = torch::stable::new_empty(like, {end}, ScalarType::Byte);
  auto* const at = out_of<uint8_t>(memory);
  return [&]<size_t... i>(std::index_sequence<i...>) {
    return std::tuple<Tensor, T*...>(memory, reinterpret_cast<T*>(at + begins[i])...);
  }(std::index_sequence_for<T...>());
}

}  // namespace bdkernels::binding
