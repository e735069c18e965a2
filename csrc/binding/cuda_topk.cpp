// topk
#include <tuple>

#include "cuda_arguments.h"

namespace bdkernels::binding {
namespace {

// The k best of each range of items as order keys [B, ranges, k], 0 where there are too few; and where a score is NaN:
// row * n + item, or -1.
std::tuple<Tensor, Tensor> topk(const Tensor& users, const Tensor& items, const Tensor& bias, int64_t k,
                                const Tensor& indptr, const Tensor& indices, int64_t ranges) {
  const OnDevice device(users);
  const auto u = users_of(users);
  STD_TORCH_CHECK(0 < k && k <= items.size(0) && k <= cuda::kMostTopK, "bdkernels: k: expected 1 to the number of items");
  const auto shape = cuda::topk_shape(u.n, items.size(0), k, ranges);
  Tensor scratch = torch::stable::new_empty(users, {u.n, shape.ranges, shape.capacity}, ScalarType::Long);
  Tensor best = torch::stable::new_empty(users, {u.n, shape.ranges, k}, ScalarType::Long);
  Tensor nan_at = no_nan(users);
  cuda::topk(u, items_of(users, items, bias), k, seen_of(indptr, indices, u.n), shape, out_of<uint64_t>(scratch),
             out_of<uint64_t>(best), out_of<int64_t>(nan_at), device.stream());
  return {best, nan_at};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bdkernels_cuda, m) {
  m.def(
      "topk(Tensor users, Tensor items, Tensor bias, int k, Tensor indptr, Tensor indices, int ranges) "
      "-> (Tensor, Tensor)");
}

BDKERNELS_CUDA_IMPL(m) { m.impl("topk", BDKERNELS_BOX(&topk)); }

}  // namespace bdkernels::binding
