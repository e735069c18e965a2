// A warp scores 32 scattered items together. For 32 factors at a time, its lanes read those of one item after the other,
// side by side, into shared memory; from there each lane adds its own item's products, since a score is one sum in order.
#pragma once
#include "device.h"

namespace bdkernels::cuda {

constexpr int kListedFloats = kWarp * (kWarp + 1);  // of shared memory for a warp; one column more: no two lanes on one bank

// The score of a lane's user and item, each of the first n lanes its own; the others' is 0. All lanes of the warp come here,
// with the same `tile` of kListedFloats.
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
