// rank
#include <tuple>

#include "../cpu/kernels.h"
#include "arguments.h"

namespace bdkernels::binding {
namespace {

// Counts [B, C], and where a score is NaN: row * n + item, or -1.
std::tuple<Tensor, int64_t> count(const cpu::CountAbove::Source& source, int64_t n, const Tensor& thresholds,
                                  const Tensor& tie_ids, const Seen& seen, int64_t item_offset, int64_t tile) {
  const int64_t b = tie_ids.size(0), c = tie_ids.size(1);
  Tensor out = torch::stable::new_zeros(tie_ids, {b, c});
  const cpu::Query query{data<float>(thresholds, ScalarType::Float, "thresholds"), longs(tie_ids, "tie_ids"), c, item_offset,
                         n};
  cpu::CountAbove work(source, b, query, seen, tile, static_cast<int64_t*>(out.mutable_data_ptr()));
  parallel_for(0, work.tasks(), 1, [&](int64_t first, int64_t last) { work.run(first, last); });
  return {out, work.nan_at()};
}

std::tuple<Tensor, int64_t> count_above(const Tensor& users, const Tensor& items, const Tensor& bias,
                                        const Tensor& thresholds, const Tensor& tie_ids, const Tensor& indptr,
                                        const Tensor& indices, int64_t item_offset, int64_t tile) {
  const Items table = items_of(users, items, bias);
  return count({users_of(users), table, nullptr}, table.n, thresholds, tie_ids, seen_of(indptr, indices, users.size(0)),
               item_offset, tile);
}

std::tuple<Tensor, int64_t> count_above_block(const Tensor& scores, const Tensor& thresholds, const Tensor& tie_ids,
                                              const Tensor& indptr, const Tensor& indices, int64_t item_offset,
                                              int64_t tile) {
  return count({{}, {}, data<float>(scores, ScalarType::Float, "scores")}, scores.size(1), thresholds, tie_ids,
               seen_of(indptr, indices, scores.size(0)), item_offset, tile);
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
  m.impl("count_above", BDKERNELS_BOX(&count_above));
  m.impl("count_above_block", BDKERNELS_BOX(&count_above_block));
}

}  // namespace bdkernels::binding
