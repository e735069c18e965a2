// sample
#include "cuda_arguments.h"

namespace bdkernels::binding {
namespace {

Tensor propose(int64_t seed, int64_t step, const Tensor& row_keys, int64_t start, int64_t stop, int64_t n_items,
               const Tensor& indptr, const Tensor& indices) {
  const OnDevice device(row_keys);
  const int64_t rows = row_keys.size(0), c = stop - start;
  Tensor out = torch::stable::new_empty(row_keys, {rows, c});
  cuda::propose(static_cast<uint64_t>(seed), static_cast<uint32_t>(step), longs(row_keys, "row_keys"), rows, start, c,
                n_items, seen_of(indptr, indices, rows), out_of<int64_t>(out), device.stream());
  return out;
}

Tensor accept(int64_t seed, int64_t step, const Tensor& row_keys, int64_t start, const Tensor& rank_guide,
              const Tensor& rank_learner, const Tensor& candidates, int64_t kind, double parameter, bool flipped,
              bool to_teacher) {
  const OnDevice device(row_keys);
  const int64_t rows = rank_guide.size(0), c = rank_guide.size(1);
  STD_TORCH_CHECK(row_keys.numel() == rows && candidates.numel() == rows && rank_learner.numel() == rows * c,
                  "bdkernels: accept: shapes");
  Tensor out = torch::stable::new_empty(rank_guide, {rows, c}, ScalarType::Bool);
  cuda::accept(static_cast<uint64_t>(seed), static_cast<uint32_t>(step), longs(row_keys, "row_keys"), rows, start, c,
               longs(rank_guide, "rank_guide"), longs(rank_learner, "rank_learner"), longs(candidates, "candidates"),
               {static_cast<Kind>(kind), parameter, flipped}, to_teacher, out_of<bool>(out), device.stream());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bdkernels_cuda, m) {
  m.def(
      "propose(int seed, int step, Tensor row_keys, int start, int stop, int n_items, Tensor indptr, Tensor indices) "
      "-> Tensor");
  m.def(
      "accept(int seed, int step, Tensor row_keys, int start, Tensor rank_guide, Tensor rank_learner, Tensor candidates, "
      "int kind, float parameter, bool flipped, bool to_teacher) -> Tensor");
}

BDKERNELS_CUDA_IMPL(m) {
  m.impl("propose", BDKERNELS_BOX(&propose));
  m.impl("accept", BDKERNELS_BOX(&accept));
}

}  // namespace bdkernels::binding
