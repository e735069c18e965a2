// The one file of the CPU backend that knows torch: its stable ABI (>= 2.10), so one binary serves every later torch and
// Python. bdkernels.ops has checked the arguments; what is checked here is only what memory safety needs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <tuple>

#include "../cpu/kernels.h"
#include "../cpu/simd/simd.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::parallel_for;
using torch::stable::Tensor;
namespace cpu = bdkernels::cpu;

template <class T>
const T* data(const Tensor& t, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == dtype && t.is_contiguous(), "bdkernels: ", name, ": wrong dtype or not contiguous");
  return static_cast<const T*>(t.const_data_ptr());
}

const int64_t* longs(const Tensor& t, const char* name) { return data<int64_t>(t, ScalarType::Long, name); }

bdkernels::Dtype dtype_of(const Tensor& items) {
  switch (items.scalar_type()) {
    case ScalarType::Float:
      return bdkernels::Dtype::kFloat32;
    case ScalarType::Half:
      return bdkernels::Dtype::kFloat16;
    case ScalarType::BFloat16:
      return bdkernels::Dtype::kBfloat16;
    default:
      STD_TORCH_CHECK(false, "bdkernels: items: expected float32, float16 or bfloat16");
  }
}

bdkernels::Users users_of(const Tensor& users) { return {data<float>(users, ScalarType::Float, "users"), users.size(0)}; }

// bias and seen are optional: an empty tensor stands for None.
bdkernels::Items items_of(const Tensor& users, const Tensor& items, const Tensor& bias) {
  STD_TORCH_CHECK(users.dim() == 2 && items.dim() == 2 && users.size(1) == items.size(1), "bdkernels: users, items: shapes");
  STD_TORCH_CHECK(items.stride(1) == 1 || items.size(1) <= 1, "bdkernels: items: columns must not be strided");
  STD_TORCH_CHECK(bias.numel() == 0 ||
                      (bias.numel() == items.size(0) && bias.is_contiguous() && bias.scalar_type() == items.scalar_type()),
                  "bdkernels: item_bias: must match items");
  return {items.const_data_ptr(), bias.numel() ? bias.const_data_ptr() : nullptr,
          dtype_of(items),        items.size(0),
          items.size(1),          items.stride(0)};
}

bdkernels::Seen seen_of(const Tensor& indptr, const Tensor& indices, int64_t rows) {
  if (indptr.numel() == 0) return {nullptr, nullptr};
  STD_TORCH_CHECK(indptr.numel() == rows + 1, "bdkernels: seen.indptr: expected one more than the rows");
  return {longs(indptr, "seen.indptr"), longs(indices, "seen.indices")};
}

Tensor score(const Tensor& users, const Tensor& items, const Tensor& bias, const Tensor& ids) {
  const auto u = users_of(users);
  const auto v = items_of(users, items, bias);
  const int64_t c = ids.size(1);
  Tensor out = torch::stable::new_empty(users, {u.n, c});
  const int64_t* id = longs(ids, "ids");
  float* o = static_cast<float*>(out.mutable_data_ptr());
  parallel_for(0, u.n, 8, [&](int64_t a, int64_t b) { cpu::score(u, v, id, c, a, b, o); });
  return out;
}

Tensor score_block(const Tensor& users, const Tensor& items, const Tensor& bias) {
  const auto u = users_of(users);
  const auto v = items_of(users, items, bias);
  Tensor out = torch::stable::new_empty(users, {u.n, v.n});
  float* o = static_cast<float*>(out.mutable_data_ptr());
  parallel_for(0, v.n, 4096, [&](int64_t a, int64_t b) { cpu::score_block(u, v, a, b, o); });
  return out;
}

// Counts [B, C], and where a score is NaN: row * n + item, or -1.
std::tuple<Tensor, int64_t> count(cpu::CountAbove& work, const Tensor& like) {
  Tensor out = torch::stable::new_empty(like, {like.size(0), like.size(1)});
  int64_t* o = static_cast<int64_t*>(out.mutable_data_ptr());
  parallel_for(0, work.rows(), 16, [&](int64_t a, int64_t b) { work.prepare(a, b); });
  parallel_for(0, work.tasks(), 1, [&](int64_t a, int64_t b) { work.run(a, b); });
  parallel_for(0, work.rows(), 16, [&](int64_t a, int64_t b) { work.finish(a, b, o); });
  return {out, work.nan_at()};
}

std::tuple<Tensor, int64_t> count_above(const Tensor& users, const Tensor& items, const Tensor& bias,
                                        const Tensor& thresholds, const Tensor& tie_ids, const Tensor& indptr,
                                        const Tensor& indices, int64_t item_offset, int64_t tile) {
  const auto u = users_of(users);
  cpu::CountAbove work(u, items_of(users, items, bias), data<float>(thresholds, ScalarType::Float, "thresholds"),
                       longs(tie_ids, "tie_ids"), tie_ids.size(1), seen_of(indptr, indices, u.n), item_offset, tile);
  return count(work, tie_ids);
}

std::tuple<Tensor, int64_t> count_above_block(const Tensor& scores, const Tensor& thresholds, const Tensor& tie_ids,
                                              const Tensor& indptr, const Tensor& indices, int64_t item_offset,
                                              int64_t tile) {
  cpu::CountAbove work(data<float>(scores, ScalarType::Float, "scores"), scores.size(0), scores.size(1),
                       data<float>(thresholds, ScalarType::Float, "thresholds"), longs(tie_ids, "tie_ids"), tie_ids.size(1),
                       seen_of(indptr, indices, scores.size(0)), item_offset, tile);
  return count(work, tie_ids);
}

Tensor propose(int64_t seed, int64_t step, const Tensor& user_ids, int64_t start, int64_t stop, int64_t n_items,
               const Tensor& indptr, const Tensor& indices) {
  const int64_t rows = user_ids.size(0), c = stop - start;
  const auto seen = seen_of(indptr, indices, rows);
  const int64_t* id = longs(user_ids, "user_ids");
  Tensor out = torch::stable::new_empty(user_ids, {rows, c});
  int64_t* o = static_cast<int64_t*>(out.mutable_data_ptr());
  parallel_for(0, rows, 16, [&](int64_t a, int64_t b) {
    cpu::propose(static_cast<uint64_t>(seed), static_cast<uint32_t>(step), id, start, c, n_items, seen, a, b, o);
  });
  return out;
}

Tensor accept(int64_t seed, int64_t step, const Tensor& user_ids, int64_t start, const Tensor& rank_guide,
              const Tensor& rank_learner, const Tensor& candidates, int64_t kind, double parameter, bool flipped,
              bool to_teacher) {
  const bdkernels::Weight weight{static_cast<bdkernels::Kind>(kind), parameter, flipped};
  const int64_t rows = user_ids.size(0), c = rank_guide.size(1);
  const int64_t *id = longs(user_ids, "user_ids"), *guide = longs(rank_guide, "rank_guide"),
                *learner = longs(rank_learner, "rank_learner"), *n = longs(candidates, "candidates");
  Tensor out = torch::stable::new_empty(rank_guide, {rows, c}, ScalarType::Bool);
  bool* o = static_cast<bool*>(out.mutable_data_ptr());
  parallel_for(0, rows, 16, [&](int64_t a, int64_t b) {
    cpu::accept(static_cast<uint64_t>(seed), static_cast<uint32_t>(step), id, start, c, guide, learner, n, weight,
                to_teacher, a, b, o);
  });
  return out;
}

// The instruction set in use, as an index into bdkernels.cpu.ISAS.
int64_t isa() {
  const auto* chosen = &cpu::simd();
  return chosen == &cpu::portable_simd() ? 0 : chosen->lanes == 8 ? 1 : 2;
}

}  // namespace

STABLE_TORCH_LIBRARY(bdkernels_cpu, m) {
  m.def("score(Tensor users, Tensor items, Tensor bias, Tensor ids) -> Tensor");
  m.def("score_block(Tensor users, Tensor items, Tensor bias) -> Tensor");
  m.def(
      "count_above(Tensor users, Tensor items, Tensor bias, Tensor thresholds, Tensor tie_ids, Tensor indptr, "
      "Tensor indices, int item_offset, int tile) -> (Tensor, int)");
  m.def(
      "count_above_block(Tensor scores, Tensor thresholds, Tensor tie_ids, Tensor indptr, Tensor indices, "
      "int item_offset, int tile) -> (Tensor, int)");
  m.def(
      "propose(int seed, int step, Tensor user_ids, int start, int stop, int n_items, Tensor indptr, Tensor indices) "
      "-> Tensor");
  m.def(
      "accept(int seed, int step, Tensor user_ids, int start, Tensor rank_guide, Tensor rank_learner, Tensor candidates, "
      "int kind, float parameter, bool flipped, bool to_teacher) -> Tensor");
  m.def("isa() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(bdkernels_cpu, CPU, m) {
  m.impl("score", TORCH_BOX(&score));
  m.impl("score_block", TORCH_BOX(&score_block));
  m.impl("count_above", TORCH_BOX(&count_above));
  m.impl("count_above_block", TORCH_BOX(&count_above_block));
  m.impl("propose", TORCH_BOX(&propose));
  m.impl("accept", TORCH_BOX(&accept));
}

STABLE_TORCH_LIBRARY_IMPL(bdkernels_cpu, CompositeExplicitAutograd, m) { m.impl("isa", TORCH_BOX(&isa)); }
