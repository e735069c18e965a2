// topk
#include <tuple>

#include "../cpu/kernels.h"
#include "arguments.h"

namespace bdkernels::binding {
namespace {

// Scores and ids [B, k], and where a score is NaN: row * n + item, or -1.
std::tuple<Tensor, Tensor, int64_t> topk(const Tensor& users, const Tensor& items, const Tensor& bias, int64_t k,
                                         const Tensor& indptr, const Tensor& indices, int64_t tile) {
  const auto u = users_of(users);
  STD_TORCH_CHECK(0 < k && k <= items.size(0), "bdkernels: k: expected 1 to the number of items");
  Tensor scores = torch::stable::new_empty(users, {u.n, k});
  Tensor ids = torch::stable::new_empty(users, {u.n, k}, ScalarType::Long);
  float* s = static_cast<float*>(scores.mutable_data_ptr());
  int64_t* i = static_cast<int64_t*>(ids.mutable_data_ptr());
  cpu::TopK work(u, items_of(users, items, bias), k, seen_of(indptr, indices, u.n), torch::stable::get_num_threads(), tile);
  parallel_for(0, work.tasks(), 1, [&](int64_t a, int64_t b) { work.run(a, b); });
  parallel_for(0, u.n, 16, [&](int64_t a, int64_t b) { work.finish(a, b, s, i); });
  return {scores, ids, work.nan_at()};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bdkernels_cpu, m) {
  m.def(
      "topk(Tensor users, Tensor items, Tensor bias, int k, Tensor indptr, Tensor indices, int tile) "
      "-> (Tensor, Tensor, int)");
}

STABLE_TORCH_LIBRARY_IMPL(bdkernels_cpu, CPU, m) { m.impl("topk", BDKERNELS_BOX(&topk)); }

}  // namespace bdkernels::binding
