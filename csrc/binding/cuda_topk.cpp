// topk
#include <tuple>

#include "cuda_arguments.h"

namespace bdkernels::binding {
namespace {

// Scores and ids of the k best [B, k], -inf and -1 where there are too few. nan_at [], -1: becomes where a score is NaN, row
// * n
// + item. places and first_part: see TopKPlan; 0 = as many blocks as the device runs at once, and chosen.
std::tuple<Tensor, Tensor> topk(const Tensor& users, const Tensor& items, const Optional& bias, int64_t k,
                                const Optional& indptr, const Optional& indices, Tensor nan_at, int64_t places,
                                int64_t first_part) {
  const OnDevice device(users);
  const auto u = users_of(users);
  const auto v = items_of(users, items, bias);
  STD_TORCH_CHECK(0 < k && k <= v.n && k <= cuda::kMostTopK, "bdkernels: k: expected 1 to the number of items");
  const cuda::TopKPlan plan(u.n, v.n, k, places ? places : cuda::topk_places(v.dtype), first_part);
  const int64_t lists = u.n * plan.most_ranges;
  const auto [memory, sizes, best, keys] = scratch<int, uint64_t, uint64_t>(users, {lists, u.n * k, lists * plan.capacity});
  Tensor scores = torch::stable::new_empty(users, {u.n, k}, ScalarType::Float);
  Tensor ids = torch::stable::new_empty(users, {u.n, k}, ScalarType::Long);
  cuda::topk(u, v, k, seen_of(indptr, indices, u.n), plan, {keys, sizes, best}, out_of<float>(scores), out_of<int64_t>(ids),
             longs_of(nan_at, 1, "nan_at"), device.stream());
  return {scores, ids};
}

// The launches of the product that topk plans: [parts, 4] first item, end, blocks, tiles of items that each block takes.
// `like`: on the CPU.
Tensor topk_launches(const Tensor& like, int64_t b, int64_t n, int64_t k, int64_t places, int64_t first_part) {
  const cuda::TopKPlan plan(b, n, k, places, first_part);
  Tensor out = torch::stable::new_empty(like, {static_cast<int64_t>(plan.parts.size()), 4}, ScalarType::Long);
  int64_t* to = out_of<int64_t>(out);
  for (const auto& part : plan.parts) {
    for (int64_t value : {part.first, part.last, plan.user_blocks * part.ranges, part.range / cuda::kTopKTile})
      *to++ = value;
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bdkernels_cuda, m) {
  m.def(
      "topk(Tensor users, Tensor items, Tensor? bias, int k, Tensor? indptr, Tensor? indices, Tensor(a!) nan_at, int "
      "places, "
      "int first_part) -> (Tensor, Tensor)");
  m.def("topk_launches(Tensor like, int b, int n, int k, int places, int first_part) -> Tensor");
}

BDKERNELS_CUDA_IMPL(m) { m.impl("topk", BDKERNELS_BOX(&topk)); }

STABLE_TORCH_LIBRARY_IMPL(bdkernels_cuda, CompositeExplicitAutograd, m) {
  m.impl("topk_launches", BDKERNELS_BOX(&topk_launches));
}

}  // namespace bdkernels::binding
