// rank
#include "cuda_arguments.h"

namespace bdkernels::binding {
namespace {

// [B, C] int64 keys, to be sorted.
Tensor order_keys(const Tensor& thresholds, const Tensor& ids) {
  const OnDevice device(thresholds);
  STD_TORCH_CHECK(thresholds.numel() == ids.numel(), "bdkernels: thresholds, tie_ids: shapes");
  Tensor keys = torch::stable::new_empty(ids, {ids.size(0), ids.size(1)});
  cuda::order_keys(data<float>(thresholds, ScalarType::Float, "thresholds"), longs(ids, "tie_ids"), ids.numel(),
                   out_of<int64_t>(keys), device.stream());
  return keys;
}

// Calls run(query); returns the counts [B, C]. nan_at [], -1: becomes where a score is NaN.
template <class Run>
Tensor count(const Tensor& keys, const Tensor& order, int64_t item_offset, const Optional& live, Tensor& nan_at, Run run) {
  const int64_t rows = keys.size(0), c = keys.size(1);
  STD_TORCH_CHECK(order.numel() == keys.numel(), "bdkernels: keys, order: shapes");
  Tensor histogram = torch::stable::new_zeros(keys, {rows, c + 1}), counts = torch::stable::new_empty(keys, {rows, c});
  run(cuda::Query{longs(keys, "keys"), longs(order, "order"), c, item_offset, live ? longs_of(*live, 1, "live") : nullptr,
                  out_of<int64_t>(histogram), out_of<int64_t>(counts), longs_of(nan_at, 1, "nan_at")});
  return counts;
}

Tensor count_above(const Tensor& users, const Tensor& items, const Optional& bias, const Tensor& keys, const Tensor& order,
                   const Optional& indptr, const Optional& indices, int64_t item_offset, const Optional& live, Tensor nan_at,
                   int64_t precision, int64_t blocks) {
  const OnDevice device(users);
  const Users u = users_of(users);
  const Items v = items_of(users, items, bias);
  const Seen seen = seen_of(indptr, indices, u.n);
  STD_TORCH_CHECK(precision >= 0 && precision <= static_cast<int64_t>(cuda::Precision::kFp16), "bdkernels: precision");
  return count(keys, order, item_offset, live, nan_at, [&](const cuda::Query& query) {
    cuda::count_above(u, v, query, seen, static_cast<cuda::Precision>(precision), blocks, device.stream());
  });
}

Tensor count_above_block(const Tensor& scores, const Tensor& keys, const Tensor& order, const Optional& indptr,
                         const Optional& indices, int64_t item_offset, Tensor nan_at, int64_t blocks) {
  const OnDevice device(scores);
  const float* values = data<float>(scores, ScalarType::Float, "scores");
  const Seen seen = seen_of(indptr, indices, scores.size(0));
  return count(keys, order, item_offset, std::nullopt, nan_at, [&](const cuda::Query& query) {
    cuda::count_above_block(values, scores.size(0), scores.size(1), query, seen, blocks, device.stream());
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bdkernels_cuda, m) {
  m.def("order_keys(Tensor thresholds, Tensor ids) -> Tensor");
  m.def(
      "count_above(Tensor users, Tensor items, Tensor? bias, Tensor keys, Tensor order, Tensor? indptr, Tensor? indices, "
      "int item_offset, Tensor? live, Tensor(a!) nan_at, int precision, int blocks) -> Tensor");
  m.def(
      "count_above_block(Tensor scores, Tensor keys, Tensor order, Tensor? indptr, Tensor? indices, int item_offset, "
      "Tensor(a!) nan_at, int blocks) -> Tensor");
}

BDKERNELS_CUDA_IMPL(m) {
  m.impl("order_keys", BDKERNELS_BOX(&order_keys));
  m.impl("count_above", BDKERNELS_BOX(&count_above));
  m.impl("count_above_block", BDKERNELS_BOX(&count_above_block));
}

}  // namespace bdkernels::binding
