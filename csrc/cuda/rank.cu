// rank: how many items come before each threshold, of thousands for a user, in one pass over the catalog.
//
// Fuses the product (product.h; mma.h on tensor cores) with the count (histogram.h): a thread's scores are searched among
// their users' thresholds as they leave the registers, all side by side, and counted in bins in shared memory. Sums over the
// bins from the best down, by a small kernel, are the counts above each threshold.
//
// A user's thresholds and bins take 8 bytes each, so the more there are, the fewer users share a block: 64 users with up to
// 128 thresholds each, 32 with 256, 16 with 512, 8 with 1,024 (on tensor cores 64 with 128 and 16 with 512); more go in
// pieces of as many, each a pass of its own over the catalog. What a user has seen is counted first and taken off by a small
// kernel after it, nnz scores long.
//
// Floor: 2 B N d FLOPs, and for each of B N scores log2 C steps of search, each 4 instructions and, from the sixth on, bank
// conflicts (tests/gpu/wavefronts.py counts them); global memory as product.h says, and B C atomics a block row.
#include "histogram.h"
#include "mma.h"

namespace bdkernels::cuda {
namespace {

constexpr int kSmallThreads = 128;

__device__ int64_t live_rows(const Query& query, int64_t rows) {
  return query.live && *query.live < rows ? *query.live : rows;
}

template <class P>
__global__ void __launch_bounds__(kTileThreads, P::Tile::kBlocksOfSm)
    count_above_kernel(P product, int64_t items_of_block, Pieces pieces, Query query) {
  BDKERNELS_DYNAMIC_SHARED(shared);
  const int64_t first_user = int64_t{blockIdx.x} * P::kUsers, live = live_rows(query, product.n_users);
  if (first_user >= live) return;
  product.n_users = live;
  const int64_t begin = blockIdx.y * items_of_block, n = product.items.n;
  const int64_t end = begin + items_of_block < n ? begin + items_of_block : n;
  const Histogram<typename P::Tile> histogram(query, first_user, product.rows(first_user), n, pieces,
                                              shared + P::kSharedBytes);
  product.run(reinterpret_cast<typename P::Stage*>(shared), first_user, begin, end,
              [&](auto& scores, int64_t item0) { histogram.count(scores, item0, end); });
  histogram.flush();
}

// Scores that are there already: of one user, some at a time.
struct Given {
  static constexpr int kUsers = 1, kUsersOfWarp = 1, kThreadItems = 4, kItems = kTileThreads * kThreadItems;

  const float* scores;  // [rows, n_items]
  int64_t n_items;

  __device__ static int user_of(int) { return 0; }
  __device__ static int item_of(int j) { return threadIdx.x + j * kTileThreads; }

  __device__ float operator()(int64_t row, int64_t item) const { return scores[row * n_items + item]; }
  BDKERNELS_HD int64_t n() const { return n_items; }
};

__global__ void __launch_bounds__(kTileThreads)
    count_above_block_kernel(Given given, int64_t all_rows, int64_t items_of_block, Pieces pieces, Query query) {
  BDKERNELS_DYNAMIC_SHARED(shared);
  const int64_t row = blockIdx.x, begin = blockIdx.y * items_of_block;
  if (row >= live_rows(query, all_rows)) return;
  const int64_t n = given.n(), end = begin + items_of_block < n ? begin + items_of_block : n;
  const Histogram<Given> histogram(query, row, 1, n, pieces, shared);
  for (int64_t item0 = begin; item0 < end; item0 += Given::kItems) {
    float scores[1][Given::kThreadItems];
    BDKERNELS_UNROLL
    for (int j = 0; j < Given::kThreadItems; ++j) {
      const int64_t item = item0 + Given::item_of(j);
      scores[0][j] = item < end ? given(row, item) : 0.0f;
    }
    histogram.count(scores, item0, end);
  }
  histogram.flush();
}

template <class T>
struct Dot {
  const float* users;
  Table<T> items;

  __device__ float operator()(int64_t row, int64_t item) const { return dot(users + row * items.d, items, item); }
  BDKERNELS_HD int64_t n() const { return items.n; }
};

// Takes off what the row's user has seen: one block a row, one thread an item.
template <class Score>
__global__ void __launch_bounds__(kSmallThreads) uncount_seen_kernel(Score score, int64_t rows, Seen seen, Query query) {
  const int64_t row = blockIdx.x;
  if (row >= live_rows(query, rows)) return;
  for (int64_t at = seen.begin(row) + threadIdx.x; at < seen.end(row); at += kSmallThreads) {
    const int64_t id = seen.indices[at], item = id - query.item_offset;
    if (item < 0 || item >= score.n()) continue;
    const float s = score(row, item);
    if (s != s) continue;
    const int64_t bin = position(query.keys + row * query.c, query.c, signed_key(s, id));
    if (bin > 0) add(&query.histogram[row * (query.c + 1) + bin], -1);
  }
}

__global__ void __launch_bounds__(kSmallThreads)
    order_keys_kernel(const float* thresholds, const int64_t* ids, int64_t n, int64_t* keys) {
  const int64_t at = int64_t{blockIdx.x} * kSmallThreads + threadIdx.x;
  if (at < n) keys[at] = signed_key(thresholds[at], ids[at]);
}

// From the best bin down, one warp a row, one lane a bin.
__global__ void __launch_bounds__(kSmallThreads) sum_above_kernel(int64_t rows, Query query) {
  const int64_t row = (int64_t{blockIdx.x} * kSmallThreads + threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  if (row >= rows) return;
  int64_t above = 0;  // the bins of those before
  for (int64_t best = query.c; best > 0; best -= kWarp) {
    const int64_t bin = best - lane;
    int64_t sum = bin > 0 ? query.histogram[row * (query.c + 1) + bin] : 0;
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int64_t other = __shfl_up_sync(kAllLanes, sum, distance);
      if (lane >= distance) sum += other;
    }
    sum += above;
    if (bin > 0) query.counts[row * query.c + query.order[row * query.c + bin - 1]] = sum;
    above = __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
}

// What comes after the counting.
template <class Score>
void finish(const Score& score, int64_t rows, const Seen& seen, const Query& query, Stream stream) {
  if (seen.indptr) {
    launch(uncount_seen_kernel<Score>, dim3(static_cast<unsigned>(rows)), dim3(kSmallThreads), 0, stream, score, rows, seen,
           query);
  }
  if (query.counts && query.c > 0) {
    launch(sum_above_kernel, dim3(static_cast<unsigned>(div_up(rows * kWarp, kSmallThreads))), dim3(kSmallThreads), 0,
           stream, rows, query);
  }
}

template <class Tile>
void count_tiles(const Users& users, const Table<typename Tile::Element>& table, const Query& query, int64_t blocks,
                 Stream stream) {
  using P = Product<Tile>;
  const Pieces pieces(query.c, Histogram<Tile>::kMostLevels);
  const size_t shared = P::kSharedBytes + Histogram<Tile>::bytes(pieces.levels);
  if (blocks == 0) blocks = places(count_above_kernel<P>, kTileThreads, shared);
  const int64_t tiles = div_up(users.n, P::kUsers);
  // Where few rows may be alive, each tile of users fills the GPU alone.
  const Split split(table.n, P::kItems, query.live ? pieces.n : tiles * pieces.n, blocks);
  const dim3 grid(static_cast<unsigned>(tiles), split.n, static_cast<unsigned>(pieces.n));
  launch(count_above_kernel<P>, grid, dim3(kTileThreads), shared, stream, P(users, table), split.items_of_block, pieces,
         query);
}

template <class T>
void count_exactly(const Users& users, const Table<T>& table, const Query& query, int64_t blocks, Stream stream) {
  if (query.c <= 128) {
    count_tiles<Fma<T, 64, 64>>(users, table, query, blocks, stream);
  } else if (query.c <= 256) {
    count_tiles<Fma<T, 32, 128>>(users, table, query, blocks, stream);
  } else if (query.c <= 512) {
    count_tiles<Fma<T, 16, 64 * sizeof(T)>>(users, table, query, blocks, stream);
  } else {
    count_tiles<Fma<T, 8, 128>>(users, table, query, blocks, stream);
  }
}

template <class Operand, class T>
void count_on_tensor_cores(const Users& users, const Table<T>& table, const Query& query, int64_t blocks, Stream stream) {
  if (query.c <= 128) {
    count_tiles<Mma<T, Operand, 64, 64>>(users, table, query, blocks, stream);
  } else {
    count_tiles<Mma<T, Operand, 16, 128>>(users, table, query, blocks, stream);
  }
}

}  // namespace

void order_keys(const float* thresholds, const int64_t* ids, int64_t n, int64_t* keys, Stream stream) {
  launch(order_keys_kernel, dim3(static_cast<unsigned>(div_up(n, kSmallThreads))), dim3(kSmallThreads), 0, stream,
         thresholds, ids, n, keys);
}

void count_above(const Users& users, const Items& items, const Query& query, const Seen& seen, Precision precision,
                 int64_t blocks, Stream stream) {
  with_table(items, [&](auto table) {
    using T = typename decltype(table)::Element;
    const auto on_tensor_cores = [&](Precision asked, auto operand) {
      using Operand = decltype(operand);
      if constexpr (std::is_same_v<T, float> || std::is_same_v<T, Operand>) {
        if (precision == asked) return count_on_tensor_cores<Operand>(users, table, query, blocks, stream), true;
      }
      return false;
    };
    on_tensor_cores(Precision::kTf32, Tf32{}) || on_tensor_cores(Precision::kBf16, Bfloat16{}) ||
        on_tensor_cores(Precision::kFp16, Half{}) || (count_exactly(users, table, query, blocks, stream), true);
    finish(Dot<T>{users.data, table}, users.n, seen, query, stream);
  });
}

void count_above_block(const float* scores, int64_t rows, int64_t n, const Query& query, const Seen& seen, int64_t blocks,
                       Stream stream) {
  const Given given{scores, n};
  const Pieces pieces(query.c, Histogram<Given>::kMostLevels);
  const size_t shared = Histogram<Given>::bytes(pieces.levels);
  if (blocks == 0) blocks = places(count_above_block_kernel, kTileThreads, shared);
  const Split split(n, Given::kItems, rows * pieces.n, blocks);
  const dim3 grid(static_cast<unsigned>(rows), split.n, static_cast<unsigned>(pieces.n));
  launch(count_above_block_kernel, grid, dim3(kTileThreads), shared, stream, given, rows, split.items_of_block, pieces,
         query);
  finish(given, rows, seen, query, stream);
}

}  // namespace bdkernels::cuda
