// sample
#include "../cpu/kernels.h"
#include "cpu_arguments.h"

namespace bdkernels::binding {
namespace {

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
  const Weight weight{static_cast<Kind>(kind), parameter, flipped};
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

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bdkernels_cpu, m) {
  m.def(
      "propose(int seed, int step, Tensor user_ids, int start, int stop, int n_items, Tensor indptr, Tensor indices) "
      "-> Tensor");
  m.def(
      "accept(int seed, int step, Tensor user_ids, int start, Tensor rank_guide, Tensor rank_learner, Tensor candidates, "
      "int kind, float parameter, bool flipped, bool to_teacher) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bdkernels_cpu, CPU, m) {
  m.impl("propose", TORCH_BOX(&propose));
  m.impl("accept", TORCH_BOX(&accept));
}

}  // namespace bdkernels::binding
