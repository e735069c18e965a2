// rank
#include <tuple>

#include "../cpu/kernels.h"
#include "cpu_arguments.h"

namespace bdkernels::binding {
namespace {

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

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bdkernels_cpu, m) {
  m.def(
      "count_above(Tensor users, Tensor items, Tensor bias, Tensor thresholds, Tensor tie_ids, Tensor indptr, "
      "Tensor indices, int item_offset, int tile) -> (Tensor, int)");
  m.def(
      "count_above_block(Tensor scores, Tensor thresholds, Tensor tie_ids, Tensor indptr, Tensor indices, "
      "int item_offset, int tile) -> (Tensor, int)");
}

STABLE_TORCH_LIBRARY_IMPL(bdkernels_cpu, CPU, m) {
  m.impl("count_above", TORCH_BOX(&count_above));
  m.impl("count_above_block", TORCH_BOX(&count_above_block));
}

}  // namespace bdkernels::binding
