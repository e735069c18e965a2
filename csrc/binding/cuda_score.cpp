// score, and what the library tells of itself.
#include "cuda_arguments.h"

namespace bdkernels::binding {
namespace {

Tensor score(const Tensor& users, const Tensor& items, const Optional& bias, const Tensor& ids) {
  const OnDevice device(users);
  Tensor out = torch::stable::new_empty(users, {ids.size(0), ids.size(1)});
  cuda::score(users_of(users), items_of(users, items, bias), longs(ids, "ids"), ids.size(1), out_of<float>(out),
              device.stream());
  return out;
}

Tensor score_block(const Tensor& users, const Tensor& items, const Optional& bias, int64_t blocks) {
  const OnDevice device(users);
  Tensor out = torch::stable::new_empty(users, {users.size(0), items.size(0)});
  cuda::score_block(users_of(users), items_of(users, items, bias), blocks, out_of<float>(out), device.stream());
  return out;
}

bool simulated() {
#ifdef BDKERNELS_SIMULATION
  return true;
#else
  return false;
#endif
}

}  // namespace

STABLE_TORCH_LIBRARY(bdkernels_cuda, m) {
  m.def("score(Tensor users, Tensor items, Tensor? bias, Tensor ids) -> Tensor");
  m.def("score_block(Tensor users, Tensor items, Tensor? bias, int blocks) -> Tensor");
  m.def("simulated() -> bool");
}

BDKERNELS_CUDA_IMPL(m) {
  m.impl("score", BDKERNELS_BOX(&score));
  m.impl("score_block", BDKERNELS_BOX(&score_block));
}

STABLE_TORCH_LIBRARY_IMPL(bdkernels_cuda, CompositeExplicitAutograd, m) { m.impl("simulated", BDKERNELS_BOX(&simulated)); }

}  // namespace bdkernels::binding
