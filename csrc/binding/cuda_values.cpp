// values
#include "cuda_arguments.h"

namespace bdkernels::binding {
namespace {

// fine [2], ones: the first becomes 0 where an id is not in [0, limit), the second where rows of seen items are wrong.
void values(const Optional& ids, int64_t limit, const Optional& indptr, const Optional& indices, Tensor fine) {
  const OnDevice device(fine);
  STD_TORCH_CHECK(fine.numel() == 2 && longs(fine, "fine") != nullptr, "bdkernels: fine: expected two");
  STD_TORCH_CHECK(!indptr || indptr->numel() > 0, "bdkernels: seen.indptr: expected a number at least");
  const int64_t rows = indptr ? indptr->numel() - 1 : 0;
  cuda::values(ids ? longs(*ids, "ids") : nullptr, ids ? ids->numel() : 0, limit, seen_of(indptr, indices, rows), rows,
               indices ? indices->numel() : 0, out_of<int64_t>(fine), device.stream());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bdkernels_cuda, m) {
  m.def("values(Tensor? ids, int limit, Tensor? indptr, Tensor? indices, Tensor(a!) fine) -> ()");
}

BDKERNELS_CUDA_IMPL(m) { m.impl("values", BDKERNELS_BOX(&values)); }

}  // namespace bdkernels::binding
