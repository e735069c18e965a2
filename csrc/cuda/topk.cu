// topk: one streaming pass over the catalog that keeps, for each user, the items that may still be among his k best.
//
// A block takes 64 users and a range of items, whose scores are product.h's. A comparison with the user's bar, the score of
// the k-th best of the range so far, drops nearly every one. What is left goes as an order key to the user's list; when the
// list might not hold what comes next, the block sorts it, keeps the k best and raises the bar. The lists lie in global
// memory, in fact in L2: after the first tiles they are hardly touched. They take at most kMostKeys a user whatever the
// catalog, so that there is never a [B, N] anything; the caller merges the ranges.
//
// It fuses products, exclusion of what is seen (a binary search, of the few in the lists only) and selection. Floor:
// the 2 B N d FLOPs of the product, in fp32, and its memory. Keys are a total order: what is kept does not depend on the
// order of the atomics.
#include <algorithm>
#include <cmath>

#include "../core/order.h"
#include "product.h"

namespace bdkernels::cuda {
namespace {

template <class T>
using Tile = Fma<T, 64, 128>;
constexpr int kUsers = Tile<float>::kUsers, kThreads = kTileThreads;
constexpr int kChunk = 4 * Tile<float>::kItems;  // items between two looks at the lists
constexpr int64_t kMostKeys = 1 << 15;
constexpr int64_t kBlocks = 264;  // wanted: two for each multiprocessor of an H100

__device__ bool has_seen(const Seen& seen, int64_t row, int64_t id) {
  int64_t lo = seen.begin(row), hi = seen.end(row);
  const int64_t end = hi;
  while (lo < hi) {
    const int64_t middle = lo + (hi - lo) / 2;
    if (seen.indices[middle] < id) {
      lo = middle + 1;
    } else {
      hi = middle;
    }
  }
  return lo < end && seen.indices[lo] == id;
}

// What the lists of a block share.
struct Lists {
  Seen seen;
  int64_t n_items, *nan_at;
  int k, capacity;
};

// The block sorts a user's list of `size` keys by a bitonic network, best first; the first k go to `out`, 0 where there are
// fewer. Here, and not for each score, it is seen whether one is NaN, which passes every bar, and what the user has seen is
// left out.
__device__ void sort_list(const Lists& of, int64_t user, const uint64_t* list, int size, uint64_t* sorted, uint64_t* out) {
  const int capacity = of.capacity;
  for (int i = threadIdx.x; i < capacity; i += kThreads) {
    uint64_t key = i < size ? list[i] : 0;
    if (key != 0 && std::isnan(order_score(key))) report_nan(of.nan_at, user * of.n_items + order_id(key));
    if (key != 0 && has_seen(of.seen, user, order_id(key))) key = 0;
    sorted[i] = key;
  }
  for (int run = 2; run <= capacity; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      __syncthreads();
      for (int pair = threadIdx.x; pair < capacity / 2; pair += kThreads) {
        const int low = pair / distance * 2 * distance + pair % distance, high = low + distance;
        const uint64_t a = sorted[low], b = sorted[high];
        if ((a < b) == ((low & run) == 0)) {
          sorted[low] = b;
          sorted[high] = a;
        }
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < of.k; i += kThreads) out[i] = sorted[i];
}

// Dynamic shared memory: the stages of the product, and in their place the list that is sorted.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    topk_kernel(Product<Tile<T>> product, int k, Seen seen, TopKShape shape, int64_t user_blocks, uint64_t* lists,
                uint64_t* best, int64_t* nan_at) {
  BDKERNELS_DYNAMIC_SHARED(shared);
  BDKERNELS_SHARED(int, sizes, kUsers);
  BDKERNELS_SHARED(float, bars, kUsers);
  auto* stages = reinterpret_cast<typename Tile<T>::Stage*>(shared);
  auto* sorted = reinterpret_cast<uint64_t*>(shared);
  const int64_t range = blockIdx.x / user_blocks, user0 = blockIdx.x % user_blocks * kUsers;  // neighbours share items
  const int64_t n = product.items.n, first = range * shape.range, last = first + shape.range < n ? first + shape.range : n;
  const int rows = product.rows(user0);
  const int capacity = static_cast<int>(shape.capacity);
  const Lists of{seen, n, nan_at, k, capacity};
  const auto list_of = [&](int row) { return (user0 + row) * shape.ranges + range; };
  if (threadIdx.x < kUsers) {
    sizes[threadIdx.x] = 0;
    bars[threadIdx.x] = NAN;  // no score is at most NaN
  }
  for (int64_t item0 = first; item0 < last; item0 += kChunk) {
    __syncthreads();  // sizes and bars are there, and nobody reads what was sorted
    const int64_t end = item0 + kChunk < last ? item0 + kChunk : last;
    product.run(stages, user0, item0, end, [&](const auto& sums, int64_t tile0) {
      for_each_score<Tile<T>>(sums, rows, tile0, end, [&](int row, int64_t item, float score) {
        if (score <= bars[row]) return;  // an equal one has the higher id, and NaN passes
        lists[list_of(row) * capacity + atomicAdd(&sizes[row], 1)] = order_key(score, item);
      });
    });
    for (int row = 0; row < rows; ++row) {
      const int size = sizes[row];
      if (size <= capacity - kChunk) continue;
      uint64_t* list = lists + list_of(row) * capacity;
      sort_list(of, user0 + row, list, size, sorted, list);
      if (threadIdx.x == 0) {
        sizes[row] = k;
        bars[row] = order_score(sorted[k - 1]);  // NaN again where there are fewer: key 0
      }
      __syncthreads();
    }
  }
  __syncthreads();
  for (int row = 0; row < rows; ++row) {
    sort_list(of, user0 + row, lists + list_of(row) * capacity, sizes[row], sorted, best + list_of(row) * k);
    __syncthreads();
  }
}

// Room for the k best, for a chunk more, and for enough between two sorts.
int64_t capacity_of(int64_t k) {
  int64_t capacity = 2 * kChunk;
  while (capacity < k + k / 2 + kChunk) capacity *= 2;
  return capacity;
}

}  // namespace

TopKShape topk_shape(int64_t b, int64_t n, int64_t k, int64_t ranges) {
  const int64_t capacity = capacity_of(k);
  const int64_t chunks = div_up(n, kChunk);
  if (ranges == 0) ranges = div_up(kBlocks, std::max<int64_t>(1, div_up(b, kUsers)));
  ranges = std::min({ranges, chunks, kMostKeys / capacity});
  ranges = div_up(chunks, div_up(chunks, ranges));  // none is empty
  return {ranges, div_up(chunks, ranges) * kChunk, capacity};
}

void topk(const Users& users, const Items& items, int64_t k, const Seen& seen, const TopKShape& shape, uint64_t* scratch,
          uint64_t* best, int64_t* nan_at, Stream stream) {
  const int64_t user_blocks = div_up(users.n, kUsers);
  const dim3 grid(static_cast<unsigned>(user_blocks * shape.ranges));
  with_table(items, [&](auto table) {
    using P = Product<Tile<typename decltype(table)::Element>>;
    const size_t shared = std::max(P::kSharedBytes, static_cast<size_t>(shape.capacity) * sizeof(uint64_t));
    launch(topk_kernel<typename decltype(table)::Element>, grid, dim3(kThreads), shared, stream, P(users, table),
           static_cast<int>(k), seen, shape, user_blocks, scratch, best, nan_at);
  });
}

}  // namespace bdkernels::cuda
