// values: whether the ids and the seen rows of a call may be used as addresses, in one launch instead of the dozen that
// torch's operators take. A block looks at kThreads of the ids, and at one row of seen items. Floor: 8 bytes a number.
#include <algorithm>

#include "device.h"

namespace bdkernels::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    values_kernel(const int64_t* ids, int64_t n_ids, int64_t limit, Seen seen, int64_t rows, int64_t n_seen, int64_t* fine) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x, row = blockIdx.x;
  if (at < n_ids && (ids[at] < 0 || ids[at] >= limit)) deny(fine);
  if (seen.indptr == nullptr) return;
  bool wrong = row == 0 && (seen.indptr[0] != 0 || seen.indptr[rows] != n_seen);
  if (row < rows) {
    const int64_t begin = seen.begin(row), end = seen.end(row);
    const bool inside = begin >= 0 && begin <= end && end <= n_seen;  // else nothing of it is read
    wrong |= !inside;
    for (int64_t i = inside ? begin + threadIdx.x : end; i < end; i += kThreads) {
      const int64_t before = i > begin ? seen.indices[i - 1] : -1;
      wrong |= seen.indices[i] <= before || seen.indices[i] >= limit;
    }
  }
  if (wrong) deny(fine + 1);
}

}  // namespace

void values(const int64_t* ids, int64_t n_ids, int64_t limit, const Seen& seen, int64_t rows, int64_t n_seen, int64_t* fine,
            Stream stream) {
  const int64_t of_ids = div_up(n_ids, kThreads), of_seen = seen.indptr ? std::max<int64_t>(rows, 1) : 0;
  const dim3 grid(static_cast<unsigned>(std::max(of_ids, of_seen)));
  launch(values_kernel, grid, dim3(kThreads), 0, stream, ids, n_ids, limit, seen, rows, n_seen, fine);
}

}  // namespace bdkernels::cuda
