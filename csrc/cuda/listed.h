// Scores of scattered items, by a warp together: its lanes read whole rows, and a transposition in shared memory gives each
// lane its own pair, whose sum only that lane may add up.
#pragma once
#include "device.h"

namespace bdkernels::cuda {

constexpr int kListedFloats = kWarp * (kWarp + 1);  // of shared memory for a warp; one column more: no two lanes on one bank

// The score of each lane's user and item, of the first n lanes; all lanes of the warp come here.
template <class T>
__device__ float listed_score(const float* user, const Table<T>& items, int64_t id, int n, float* tile) {
  const int lane = threadIdx.x % kWarp;
  float sum = lane < n ? bias_of(items, id) : 0.0f;
  for (int64_t k0 = 0; k0 < items.d; k0 += kWarp) {
    for (int r = 0; r < kWarp; ++r) {
      const int64_t item = __shfl_sync(kAllLanes, id, r), k = k0 + lane;
      if (r < n && k < items.d) tile[r * (kWarp + 1) + lane] = widen(items.row(item)[k]);
    }
    __syncwarp();
    const int depth = static_cast<int>(items.d - k0 < kWarp ? items.d - k0 : kWarp);
    if (lane < n) {
      for (int k = 0; k < depth; ++k) sum = __fmaf_rn(user[k0 + k], tile[lane * (kWarp + 1) + k], sum);
    }
    __syncwarp();
  }
  return sum;
}

}  // namespace bdkernels::cuda
