// Selection of the largest of distinct keys, by teams of threads: a bound that about k keys reach is found by bisection, so
// that what does not matter is never sorted.
#pragma once
#include "device.h"

namespace bdkernels::cuda {

// One warp.
struct WarpTeam {
  static constexpr int kThreads = kWarp;

  __device__ static int rank() { return threadIdx.x % kWarp; }
  __device__ static int sum(int mine) { return __reduce_add_sync(kAllLanes, mine); }
};

// All threads of a block.
template <int kThreadsOfBlock>
struct BlockTeam {
  static constexpr int kThreads = kThreadsOfBlock;

  __device__ static int rank() { return threadIdx.x; }
  __device__ static int sum(int mine) {
    constexpr int kWarps = kThreads / kWarp;
    BDKERNELS_SHARED(int, sums, kWarps);
    mine = __reduce_add_sync(kAllLanes, mine);
    if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = mine;
    __syncthreads();
    int all = 0;
    for (int w = 0; w < kWarps; ++w) all += sums[w];
    __syncthreads();
    return all;
  }
};

// A bound that at least `least` and at most `most` of the keys reach, with how many do. More than `most` of them are above 0
// and distinct; the others are 0. The key space is halved until the count fits, at most 64 times.
struct Bound {
  uint64_t key;
  int reached;
};

template <class Team>
__device__ Bound bound_of(const uint64_t* keys, int size, int least, int most) {
  Bound low{0, size};
  uint64_t high = ~uint64_t{0};  // fewer than `least` reach it
  while (low.reached > most && high - low.key > 1) {
    const uint64_t middle = low.key + (high - low.key) / 2;
    int mine = 0;
    for (int i = Team::rank(); i < size; i += Team::kThreads) mine += keys[i] >= middle;
    const int reached = Team::sum(mine);
    if (reached >= least) {
      low = {middle, reached};
    } else {
      high = middle;
    }
  }
  return low;
}

// The block sorts `size` keys in shared memory, a power of two of them, the largest first: a bitonic network.
template <int kThreads>
__device__ void sort_keys(uint64_t* keys, int size) {
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      __syncthreads();
      for (int pair = threadIdx.x; pair < size / 2; pair += kThreads) {
        const int within = pair & (distance - 1), low = 2 * pair - within, high = low + distance;
        const uint64_t a = keys[low], b = keys[high];
        if ((a < b) == ((low & run) == 0)) {
          keys[low] = b;
          keys[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

}  // namespace bdkernels::cuda
