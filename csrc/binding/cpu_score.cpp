// score, and what the library tells of itself.
#include "../cpu/kernels.h"
#include "arguments.h"

namespace bdkernels::binding {
namespace {

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

// The instruction set in use, as an index into bdkernels.backends.cpu.ISAS.
int64_t isa() {
  const auto* chosen = &cpu::simd();
  return chosen == &cpu::portable_simd() ? 0 : chosen->lanes == 8 ? 1 : 2;
}

}  // namespace

STABLE_TORCH_LIBRARY(bdkernels_cpu, m) {
  m.def("score(Tensor users, Tensor items, Tensor bias, Tensor ids) -> Tensor");
  m.def("score_block(Tensor users, Tensor items, Tensor bias) -> Tensor");
  m.def("isa() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(bdkernels_cpu, CPU, m) {
  m.impl("score", BDKERNELS_BOX(&score));
  m.impl("score_block", BDKERNELS_BOX(&score_block));
}

STABLE_TORCH_LIBRARY_IMPL(bdkernels_cpu, CompositeExplicitAutograd, m) { m.impl("isa", BDKERNELS_BOX(&isa)); }

}  // namespace bdkernels::binding
