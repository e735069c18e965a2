// rank: how many items come before each threshold, of thousands for a user, in one pass over the catalog.
//
// Fuses the product (product.h; mma.h on tensor cores) with the count: a block keeps the sorted thresholds of its users and
// a histogram in shared memory; a thread's scores are searched among their users' thresholds as they leave the registers,
// all side by side, and counted in the bins where they belong. The sums over the bins from the best down, which the caller
// takes, are the counts above each threshold. Only where a score equals a threshold do the whole keys in global memory
// decide by id.
//
// A user's thresholds and bins take 8 bytes each, so the more there are, the fewer users share a block: 64 users with up to
// 128 thresholds each, 16 with 512, 8 with 1,024 (on tensor cores 16 with 512); more go in pieces of as many, each a pass of
// its own over the catalog. What a user has seen is counted first and taken off by a small kernel after it, nnz scores long.
//
// Floor: 2 B N d FLOPs and B N (log2 C + 1) shared-memory steps of search; global memory as product.h says, and B C atomics
// a block row.
#include "../core/order.h"
#include "mma.h"

namespace bdkernels::cuda {
namespace {

constexpr int64_t kSign = INT64_MIN;
constexpr int kSeenThreads = 128;

// Keys as torch sorts them, signed.
__device__ int64_t signed_key(float score, int64_t id) {
  return static_cast<int64_t>(order_key(score, id) ^ static_cast<uint64_t>(kSign));
}
__device__ float score_of_key(int64_t signed_key) { return order_score(static_cast<uint64_t>(signed_key ^ kSign)); }

// How many of the rising values [n] are less than one.
template <class V, class Index>
__device__ Index position(const V* values, Index n, V value) {
  Index low = 0;
  BDKERNELS_NO_UNROLL  // its registers are the product's
      while (n > 0) {
    const Index half = n / 2;
    if (values[low + half] < value) {
      low += half + 1;
      n -= half + 1;
    } else {
      n = half;
    }
  }
  return low;
}

__device__ int64_t live_rows(const Query& query, int64_t rows) {
  return query.live && *query.live < rows ? *query.live : rows;
}

// The thresholds and bins of some rows in the shared memory of a block.
struct Histogram {
  Query query;
  int64_t first_row, n;  // n: items, to name one that is NaN
  int rows;
  int64_t first_key;
  int c;       // keys from first_key that this block has
  int looked;  // and one more if there is one: what comes after it, the next piece counts
  int pitch;   // of a row: odd, so that a lane's row does not decide its bank
  float* thresholds;
  uint32_t* bins;  // each [rows of the tile, pitch]

  // Room for c thresholds, the one after them, and one that no score is less than.
  BDKERNELS_HD static int pitch_of(int64_t c) { return static_cast<int>(c + 2) | 1; }
  static size_t bytes(int rows_of_tile, int64_t c) { return 2 * sizeof(float) * rows_of_tile * pitch_of(c); }

  __device__ const int64_t* keys(int row) const { return query.keys + (first_row + row) * query.c + first_key; }

  __device__ void clear(int rows_of_tile) {
    BDKERNELS_NO_UNROLL
    for (int i = threadIdx.x; i < rows_of_tile * pitch; i += blockDim.x) {
      const int row = i / pitch, at = i % pitch;
      thresholds[i] = row < rows && at < looked ? score_of_key(keys(row)[at]) : INFINITY;
      bins[i] = 0;
    }
    __syncthreads();
  }

  // A thread's scores: places as of the product's `sums`. As many searches go side by side as registers allow, in the same
  // steps: `half` of what is left to a search lies before the threshold that it looks at and with it.
  template <class Tile, int kUsers, int kItems>
  __device__ void count(const float (&scores)[kUsers][kItems], int64_t item0, int64_t end) const {
    constexpr int kTogether = kUsers * kItems > 8 ? 8 / kItems : kUsers;
    static_assert(kTogether > 0 && kUsers % kTogether == 0);
    const int items = items_before(end, item0, Tile::kItems);
    BDKERNELS_UNROLL
    for (int i = 0; i < kUsers; i += kTogether) {
      int at[kTogether][kItems], half = half_of(looked);
      BDKERNELS_UNROLL
      for (int r = 0; r < kTogether; ++r) {
        BDKERNELS_UNROLL
        for (int j = 0; j < kItems; ++j) at[r][j] = Tile::user_of(i + r) * pitch + half - 1;
      }
      BDKERNELS_NO_UNROLL
      for (int left = looked; left > 0;) {
        left -= half;
        const int next = half_of(left), back = next - half;
        BDKERNELS_UNROLL
        for (int r = 0; r < kTogether; ++r) {
          BDKERNELS_UNROLL
          for (int j = 0; j < kItems; ++j) at[r][j] += thresholds[at[r][j]] < scores[i + r][j] ? next : back;
        }
        half = next;
      }
      BDKERNELS_UNROLL
      for (int r = 0; r < kTogether; ++r) {
        BDKERNELS_UNROLL
        for (int j = 0; j < kItems; ++j) {
          const int row = Tile::user_of(i + r), item = Tile::item_of(j);
          if (row < rows && item < items) put(row, item0 + item, scores[i + r][j], at[r][j]);
        }
      }
    }
  }

  __device__ static int half_of(int left) { return left > 1 ? (left + 1) / 2 : 1; }

  // Into the bin after the thresholds of the row before `at`, which are less.
  __device__ void put(int row, int64_t item, float score, int at) const {
    int bin = at - row * pitch;
    if (!(thresholds[at] > score)) bin = among_equals(row, item, score, bin);
    if (bin > 0 && bin <= c) atomicAdd(&bins[row * pitch + bin - 1], 1u);
  }

  // The bin of a score that equals the threshold there, by id; none if it is NaN.
  __device__ int among_equals(int row, int64_t item, float score, int bin) const {
    if (score != score) {
      report_nan(query.nan_at, (first_row + row) * n + item);
      return 0;
    }
    return bin + position(keys(row) + bin, looked - bin, signed_key(score, item + query.item_offset));
  }

  __device__ void flush() const {
    __syncthreads();
    BDKERNELS_NO_UNROLL
    for (int i = threadIdx.x; i < rows * c; i += blockDim.x) {
      const int row = i / c, bin = i % c;
      const uint32_t many = bins[row * pitch + bin];
      if (many) add(&query.histogram[(first_row + row) * (query.c + 1) + first_key + bin + 1], many);
    }
  }
};

// The block of these rows and the piece blockIdx.z of their keys.
__device__ Histogram histogram_of(const Query& query, int64_t first_row, int rows, int rows_of_tile, int64_t n,
                                  int64_t piece, unsigned char* shared) {
  const int64_t first_key = blockIdx.z * piece, left = query.c - first_key;
  const int c = static_cast<int>(left < piece ? left : piece), pitch = Histogram::pitch_of(piece);
  float* thresholds = reinterpret_cast<float*>(shared);
  uint32_t* bins = reinterpret_cast<uint32_t*>(thresholds + rows_of_tile * pitch);
  Histogram out{query, first_row, n, rows, first_key, c, c + (left > piece), pitch, thresholds, bins};
  out.clear(rows_of_tile);
  return out;
}

template <class P>
__global__ void __launch_bounds__(kTileThreads, P::Tile::kBlocksOfSm)
    count_above_kernel(P product, int64_t items_of_block, int64_t piece, Query query) {
  BDKERNELS_DYNAMIC_SHARED(shared);
  const int64_t first_user = int64_t{blockIdx.x} * P::kUsers, live = live_rows(query, product.n_users);
  if (first_user >= live) return;
  product.n_users = live;
  const int64_t begin = blockIdx.y * items_of_block, n = product.items.n;
  const int64_t end = begin + items_of_block < n ? begin + items_of_block : n;
  const Histogram histogram =
      histogram_of(query, first_user, product.rows(first_user), P::kUsers, n, piece, shared + P::kSharedBytes);
  product.run(reinterpret_cast<typename P::Stage*>(shared), first_user, begin, end,
              [&](const auto& scores, int64_t item0) { histogram.count<typename P::Tile>(scores, item0, end); });
  histogram.flush();
}

// Scores that are there already: of one user, some at a time.
struct Given {
  static constexpr int kThreadItems = 4, kItems = kTileThreads * kThreadItems;

  const float* scores;  // [rows, n_items]
  int64_t n_items;

  __device__ static int user_of(int) { return 0; }
  __device__ static int item_of(int j) { return threadIdx.x + j * kTileThreads; }

  __device__ float operator()(int64_t row, int64_t item) const { return scores[row * n_items + item]; }
  BDKERNELS_HD int64_t n() const { return n_items; }
};

__global__ void __launch_bounds__(kTileThreads)
    count_above_block_kernel(Given given, int64_t all_rows, int64_t items_of_block, int64_t piece, Query query) {
  BDKERNELS_DYNAMIC_SHARED(shared);
  const int64_t row = blockIdx.x, begin = blockIdx.y * items_of_block;
  if (row >= live_rows(query, all_rows)) return;
  const int64_t n = given.n(), end = begin + items_of_block < n ? begin + items_of_block : n;
  const Histogram histogram = histogram_of(query, row, 1, 1, n, piece, shared);
  for (int64_t item0 = begin; item0 < end; item0 += Given::kItems) {
    float scores[1][Given::kThreadItems];
    BDKERNELS_UNROLL
    for (int j = 0; j < Given::kThreadItems; ++j) {
      const int64_t item = item0 + Given::item_of(j);
      scores[0][j] = item < end ? given(row, item) : 0.0f;
    }
    histogram.count<Given>(scores, item0, end);
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
__global__ void __launch_bounds__(kSeenThreads) uncount_seen_kernel(Score score, int64_t rows, Seen seen, Query query) {
  const int64_t row = blockIdx.x;
  if (row >= live_rows(query, rows)) return;
  for (int64_t at = seen.begin(row) + threadIdx.x; at < seen.end(row); at += kSeenThreads) {
    const int64_t id = seen.indices[at], item = id - query.item_offset;
    if (item < 0 || item >= score.n()) continue;
    const float s = score(row, item);
    if (s != s) continue;
    const int64_t bin = position(query.keys + row * query.c, query.c, signed_key(s, id));
    if (bin > 0) add(&query.histogram[row * (query.c + 1) + bin], -1);
  }
}

template <class Score>
void uncount_seen(const Score& score, int64_t rows, const Seen& seen, const Query& query, Stream stream) {
  if (!seen.indptr) return;
  launch(uncount_seen_kernel<Score>, dim3(static_cast<unsigned>(rows)), dim3(kSeenThreads), 0, stream, score, rows, seen,
         query);
}

struct Pieces {
  int64_t keys, n;
};

// One piece even where there is no key: every score is looked at, for NaN.
Pieces pieces_of(int64_t c, int64_t most) {
  const int64_t keys = c < 1 ? 1 : c < most ? c : most;
  return {keys, c < 1 ? 1 : div_up(c, keys)};
}

template <class Tile>
void count_tiles(const Users& users, const Table<typename Tile::Element>& table, const Query& query, int64_t most_keys,
                 int64_t blocks, Stream stream) {
  using P = Product<Tile>;
  const auto [piece, pieces] = pieces_of(query.c, most_keys);
  const int64_t tiles = div_up(users.n, P::kUsers);
  const Split split(table.n, P::kItems, tiles * pieces, blocks);
  const dim3 grid(static_cast<unsigned>(tiles), split.n, static_cast<unsigned>(pieces));
  launch(count_above_kernel<P>, grid, dim3(kTileThreads), P::kSharedBytes + Histogram::bytes(P::kUsers, piece), stream,
         P(users, table), split.items_of_block, piece, query);
}

template <class T>
void count_exactly(const Users& users, const Table<T>& table, const Query& query, int64_t blocks, Stream stream) {
  if (query.c <= 128) {
    count_tiles<Fma<T, 64, 64>>(users, table, query, 128, blocks, stream);
  } else if (query.c <= 512) {
    count_tiles<Fma<T, 16, 128>>(users, table, query, 512, blocks, stream);
  } else {
    count_tiles<Fma<T, 8, 128>>(users, table, query, 1024, blocks, stream);
  }
}

template <class Operand, class T>
void count_on_tensor_cores(const Users& users, const Table<T>& table, const Query& query, int64_t blocks, Stream stream) {
  if (query.c <= 128) {
    count_tiles<Mma<T, Operand, 64, 64>>(users, table, query, 128, blocks, stream);
  } else {
    count_tiles<Mma<T, Operand, 16, 128>>(users, table, query, 512, blocks, stream);
  }
}

}  // namespace

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
    uncount_seen(Dot<T>{users.data, table}, users.n, seen, query, stream);
  });
}

void count_above_block(const float* scores, int64_t rows, int64_t n, const Query& query, const Seen& seen, int64_t blocks,
                       Stream stream) {
  const Given given{scores, n};
  const auto [piece, pieces] = pieces_of(query.c, 4096);
  const Split split(n, Given::kItems, rows * pieces, blocks);
  const dim3 grid(static_cast<unsigned>(rows), split.n, static_cast<unsigned>(pieces));
  launch(count_above_block_kernel, grid, dim3(kTileThreads), Histogram::bytes(1, piece), stream, given, rows,
         split.items_of_block, piece, query);
  uncount_seen(given, rows, seen, query, stream);
}

}  // namespace bdkernels::cuda
