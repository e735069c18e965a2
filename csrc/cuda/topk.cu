// topk: the k best of each user, from one streaming pass over the catalog.
//
// A block takes 64 users and a range of items, whose scores are product.h's. A comparison with the user's bar, below which
// none of the k best can be, drops nearly every one. What is left goes as an order key to the user's list of that range, in
// global memory, in fact in L2. When a list might not hold the next tile, each warp cuts lists of its own, eight at once, to
// about the k best so far and raises their bars (select.h): nothing is sorted. A second kernel, a block a user, goes through
// a user's lists, and sorts the k or so keys that are left.
//
// The catalog comes in parts, each with the ranges that fill whole waves of blocks: first 16 k items (2,048 at least), which
// all pass; then up to 32 times as many; then the rest. After each part the k best so far give the bar of the next one.
// Of items in any order, a part from a to b thus lets k (b - a) / a items of a user pass: of 1M items and k = 100, first
// 2,048, then 3,100, then 1,426, 0.7 % of all; an H100 then holds 261 lists of 64 users with 5 or 6 keys each, which are
// never cut, or of 1,024 users 33 lists with 43. In the worst order, rising scores, each tile of a range passes and is cut.
//
// It fuses products, exclusion of what is seen (a binary search, of the few in the lists only, among what the user has seen
// of the range) and selection. Floor: the 2 B N d FLOPs of the product, in fp32, and its memory. Derived, not measured
// (tests/gpu/model.md): of 1M items, d = 64 and k = 100, the last of six launches of products and merges has 93 % of the
// work; a tile costs a warp some 2,900 instructions, of which 2,048 are multiplications, 150 compare its 1,024 scores with
// bars and 22 are for each that passes; a merge of a user some 30,000. Keys are a total order: what is kept depends neither
// on the order of the atomics nor on parts and ranges.
#include <algorithm>
#include <cmath>

#include "product.h"
#include "select.h"

namespace bdkernels::cuda {
namespace {

template <class T>
using Tile = Fma<T, 64, 128>;
constexpr int kUsers = Tile<float>::kUsers, kItems = Tile<float>::kItems, kThreads = kTileThreads;
static_assert(kItems == kTopKTile);
constexpr int64_t kFirstPart = 2048, kGrowth = 32;
constexpr int64_t kScratchBytes = int64_t{1} << 28;  // that lists may take where there are few users

struct Lists {
  int k, capacity;
  int64_t ranges, range;  // of the part: how many, and items in each
  uint64_t* keys;         // [B, ranges, capacity]
  int* sizes;             // [B, ranges]
  uint64_t* best;         // [B, k] of the parts before, best first, 0 where there are fewer
  int64_t* nan_at;

  __device__ uint64_t* list(int64_t user, int64_t at) const { return keys + (user * ranges + at) * capacity; }
};

// A user's list in a range of items, as one warp sees it.
struct Row {
  uint64_t* list;
  int64_t first_score;  // row * n: of the matrix [B, N] that is not there
  const int64_t* seen;  // rising ids, those in the range
  int64_t n_seen;

  // Takes out what is seen, for a 0, and tells of a NaN, which passes every bar. Here, and not for each score, it is looked
  // for either. Returns how many are left.
  __device__ int settle(int size, int64_t* nan_at) const {
    int left = 0;
    for (int i = WarpTeam::rank(); i < size; i += kWarp) {
      const uint64_t key = list[i];
      const int64_t id = order_id(key);
      if (std::isnan(order_score(key))) report_nan(nan_at, first_score + id);
      const int64_t at = position(seen, n_seen, id);
      if (at < n_seen && seen[at] == id) {
        list[i] = 0;
      } else {
        left++;
      }
    }
    return WarpTeam::sum(left);
  }

  // Keeps what reaches the bound, in order.
  __device__ void keep(int size, uint64_t bound) const {
    int kept = 0;
    for (int i = 0; i < size; i += kWarp) {
      const int at = i + WarpTeam::rank();
      const uint64_t key = at < size ? list[at] : 0;
      const unsigned those = __ballot_sync(kAllLanes, key >= bound);
      __syncwarp();  // all have read what the first of them now write
      if (key >= bound) list[kept + __popc(those & ((1u << WarpTeam::rank()) - 1))] = key;
      kept += __popc(those);
    }
  }
};

// The block's lists of its users.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) topk_kernel(Product<Tile<T>> product, int64_t first_item, int64_t end_item,
                                                           Seen seen, Lists lists, int64_t user_blocks, bool has_best) {
  BDKERNELS_DYNAMIC_SHARED(shared);
  BDKERNELS_SHARED(int, sizes, kUsers);
  BDKERNELS_SHARED(float, bars, kUsers);
  BDKERNELS_SHARED(int64_t, seen_bounds, 2 * kUsers);
  const int64_t range = blockIdx.x / user_blocks, user0 = blockIdx.x % user_blocks * kUsers;  // neighbours share items
  const int64_t begin = first_item + range * lists.range;
  const int64_t end = begin + lists.range < end_item ? begin + lists.range : end_item;
  const int rows = product.rows(user0), k = lists.k, limit = lists.capacity - kItems;
  uint64_t* const first_list = lists.list(user0, range);
  const int pitch = static_cast<int>(lists.ranges) * lists.capacity;  // from a user's list to the next one's
  for (int i = threadIdx.x; i < kUsers; i += kThreads) {
    const uint64_t worst = has_best && i < rows ? lists.best[(user0 + i) * k + k - 1] : 0;
    sizes[i] = 0;
    bars[i] = order_score(worst);  // of 0, NaN: no score is at most that
  }
  for (int i = threadIdx.x; i < 2 * rows; i += kThreads) {
    const int64_t user = user0 + i / 2;
    const int64_t first = seen.begin(user);
    seen_bounds[i] = first + position(seen.indices + first, seen.count(user), i % 2 ? end : begin);
  }
  // Each warp settles lists of its own that have more than `some` keys, and cuts them if more than `most` are left.
  const int close = k + k / 4 + 1;
  const auto cut = [&](int some, int most) {
    BDKERNELS_NO_UNROLL
    for (int row = threadIdx.x / kWarp; row < rows; row += kThreads / kWarp) {
      const int size = sizes[row];
      if (size <= some) continue;
      const int64_t first_seen = seen_bounds[2 * row];
      const Row of{first_list + int64_t{row} * pitch, (user0 + row) * product.items.n, seen.indices + first_seen,
                   seen_bounds[2 * row + 1] - first_seen};
      Bound bound{1, of.settle(size, lists.nan_at)};
      const bool many = bound.reached > most;
      if (many) bound = bound_of<WarpTeam>(of.list, size, k, close);
      if (bound.reached < size) of.keep(size, bound.key);
      __syncwarp();  // all have read the size
      if (WarpTeam::rank() == 0) {
        sizes[row] = bound.reached;
        if (many) bars[row] = order_score(bound.key);  // an equal score that comes later has the higher id
      }
    }
  };
  product.run(reinterpret_cast<typename Tile<T>::Stage*>(shared), user0, begin, end, [&](const auto& sums, int64_t tile0) {
    bool full = false;
    BDKERNELS_UNROLL
    for (int i = 0; i < Tile<T>::kThreadUsers; ++i) {
      const int row = Tile<T>::user_of(i);
      const float bar = bars[row];
      BDKERNELS_UNROLL
      for (int j = 0; j < Tile<T>::kThreadItems; ++j) {
        if (sums[i][j] <= bar) continue;  // NaN passes
        const int64_t item = tile0 + Tile<T>::item_of(j);
        if (row >= rows || item >= end) continue;
        const int at = atomicAdd(&sizes[row], 1);
        first_list[int64_t{row} * pitch + at] = order_key(sums[i][j], item);
        full |= at >= limit;
      }
    }
    if (__syncthreads_or(full)) cut((k + limit) / 2, close);  // before the barrier that ends the tile
  });
  cut(0, limit);
  __syncthreads();
  for (int i = threadIdx.x; i < rows; i += kThreads) lists.sizes[(user0 + i) * lists.ranges + range] = sizes[i];
}

// What the merge of one user's lists holds in shared memory.
struct Room {
  int sorted;  // a power of two: what is sorted in the end
  int limit;   // keys that may be there before the next of each thread

  explicit Room(int64_t k) : sorted(32) {
    while (sorted < k + k / 8) sorted *= 2;
    limit = sorted + 1792;
  }
  BDKERNELS_HD int keys() const { return limit + kThreads; }
  size_t bytes() const { return sizeof(uint64_t) * (keys() + sorted); }
};

// One block a user: the k best of its lists and of the parts before. After the last part, as scores and ids.
// `lanes` threads, a power of two, read a list side by side.
__global__ void __launch_bounds__(kThreads)
    merge_kernel(Lists lists, Room room, int lanes, bool has_best, float* scores, int64_t* ids) {
  BDKERNELS_DYNAMIC_SHARED(shared);
  BDKERNELS_SHARED(int, sizes, 2);
  auto* keys = reinterpret_cast<uint64_t*>(shared);
  uint64_t* chosen = keys + room.keys();
  const int64_t user = blockIdx.x;
  const int k = lists.k;
  uint64_t* best = lists.best + user * k;
  uint64_t bar = 1;  // what is kept reaches it
  if (threadIdx.x < 2) sizes[threadIdx.x] = 0;
  __syncthreads();
  // Returns whether there is no room for one more of each thread.
  const auto put = [&](uint64_t* to, int& size, uint64_t key) {
    if (key < bar) return false;
    const int at = atomicAdd(&size, 1);
    to[at] = key;
    return at >= room.limit;
  };
  // To those that are sorted in the end.
  const auto cut = [&] {
    const int size = sizes[0];
    bar = bound_of<BlockTeam<kThreads>>(keys, size, k, room.sorted).key;
    for (int i = threadIdx.x; i < size; i += kThreads) put(chosen, sizes[1], keys[i]);
    __syncthreads();
    const int kept = sizes[1];
    for (int i = threadIdx.x; i < kept; i += kThreads) keys[i] = chosen[i];
    __syncthreads();
    if (threadIdx.x == 0) sizes[0] = kept, sizes[1] = 0;
    __syncthreads();
  };
  if (has_best) {
    for (int i = threadIdx.x; i < k; i += kThreads) put(keys, sizes[0], best[i]);
  }
  for (int64_t first = 0; first < lists.ranges; first += kThreads / lanes) {
    const int64_t range = first + threadIdx.x / lanes;
    const int size = range < lists.ranges ? lists.sizes[user * lists.ranges + range] : 0;
    for (int at = threadIdx.x % lanes; __syncthreads_or(at < size); at += lanes) {
      if (__syncthreads_or(at < size && put(keys, sizes[0], lists.list(user, range)[at]))) cut();
    }
  }
  __syncthreads();
  if (sizes[0] > room.sorted) cut();
  const int size = sizes[0];
  for (int i = size + threadIdx.x; i < room.sorted; i += kThreads) keys[i] = 0;
  sort_keys<kThreads>(keys, room.sorted);
  for (int i = threadIdx.x; i < k; i += kThreads) {
    const uint64_t key = keys[i];
    best[i] = key;
    if (!scores) continue;
    scores[user * k + i] = key ? order_score(key) : -INFINITY;
    ids[user * k + i] = key ? order_id(key) : -1;
  }
}

}  // namespace

int64_t topk_places(Dtype dtype) {
  return with_element(dtype, [](auto zero) {
    using P = Product<Tile<decltype(zero)>>;
    return cuda::places(topk_kernel<decltype(zero)>, kThreads, P::kSharedBytes);
  });
}

TopKPlan::TopKPlan(int64_t b, int64_t n, int64_t k, int64_t places, int64_t first_part)
    : user_blocks(div_up(std::max<int64_t>(b, 1), kUsers)),
      capacity(div_up(k + std::max<int64_t>(k / 2, 192), 32) * 32 + kItems) {
  const int64_t list_bytes = std::max<int64_t>(b, 1) * capacity * static_cast<int64_t>(sizeof(uint64_t));
  const int64_t most = std::max<int64_t>(1, kScratchBytes / list_bytes);
  const int64_t start = div_up(first_part ? first_part : std::max(kFirstPart, 16 * k), kItems) * kItems;
  for (int64_t first = 0, last = start; first < n; last *= kGrowth) {
    if (last > n / 8) last = n;
    const Split split(last - first, kItems, user_blocks, places, most);
    parts.push_back({first, last, split.n, split.items_of_block});
    most_ranges = std::max<int64_t>(most_ranges, split.n);
    first = last;
  }
}

void topk(const Users& users, const Items& items, int64_t k, const Seen& seen, const TopKPlan& plan,
          const TopKScratch& scratch, float* scores, int64_t* ids, int64_t* nan_at, Stream stream) {
  const Room room(k);
  for (const TopKPart& part : plan.parts) {
    const bool has_best = part.first > 0, is_last = part.last == items.n;
    const Lists lists{static_cast<int>(k), static_cast<int>(plan.capacity),
                      part.ranges,         part.range,
                      scratch.keys,        scratch.sizes,
                      scratch.best,        nan_at};
    with_table(items, [&](auto table) {
      using T = typename decltype(table)::Element;
      using P = Product<Tile<T>>;
      const dim3 grid(static_cast<unsigned>(users.n ? plan.user_blocks * part.ranges : 0));
      launch(topk_kernel<T>, grid, dim3(kThreads), P::kSharedBytes, stream, P(users, table), part.first, part.last, seen,
             lists, plan.user_blocks, has_best);
    });
    int lanes = kThreads;
    while (lanes > 8 && lanes * part.ranges > kThreads) lanes /= 2;
    launch(merge_kernel, dim3(static_cast<unsigned>(users.n)), dim3(kThreads), room.bytes(), stream, lists, room, lanes,
           has_best, is_last ? scores : nullptr, is_last ? ids : nullptr);
  }
}

}  // namespace bdkernels::cuda
