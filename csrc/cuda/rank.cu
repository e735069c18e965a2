// rank: how many items come before each threshold, of thousands for a user, in one pass over the catalog.
//
// Fuses the product (product.h) with the count: a block keeps the sorted thresholds of its users and a histogram in shared
// memory; each score is searched among its user's thresholds as soon as it is in a register, and counted in the bin where it
// belongs. The sums over the bins from the best down, which the caller takes, are the counts above each threshold. The
// search is over 32-bit score bits; only on a tie do the whole keys in global memory decide by id.
//
// A user's thresholds and bins take 8 bytes each, so the more there are, the fewer users share a block: 64 users with up to
// 128 thresholds each, 16 with 512, 8 with 1,024; more go in pieces of 1,024, each a pass of its own over the catalog. What
// a user has seen is counted first and taken off by a small kernel after it, nnz scores long.
//
// Floor: 2 B N d FLOPs and B N (log2 C + 1) shared-memory steps of search; global memory as product.h says, and B C atomics
// a block row.
#include "../core/order.h"
#include "product.h"

namespace bdkernels::cuda {
namespace {

constexpr int64_t kSign = INT64_MIN;
constexpr int kSeenThreads = 128, kBlockThreads = 256;

// Keys as torch sorts them, signed.
__device__ int64_t signed_key(float score, int64_t id) {
  return static_cast<int64_t>(order_key(score, id) ^ static_cast<uint64_t>(kSign));
}
__device__ uint32_t bits_of(int64_t signed_key) {
  return static_cast<uint32_t>(static_cast<uint64_t>(signed_key ^ kSign) >> 32);
}

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
  int c;                  // keys from first_key that this block has
  uint32_t *bits, *bins;  // [rows, c]

  __device__ const int64_t* keys(int row) const { return query.keys + (first_row + row) * query.c + first_key; }

  __device__ void clear() {
    BDKERNELS_NO_UNROLL
    for (int i = threadIdx.x; i < rows * c; i += blockDim.x) {
      bits[i] = bits_of(keys(i / c)[i % c]);
      bins[i] = 0;
    }
    __syncthreads();
  }

  __device__ void count(int row, int64_t item, float score) {
    if (score != score) return report_nan(query.nan_at, (first_row + row) * n + item);
    const uint32_t value = order_bits(score);
    int bin = position(bits + row * c, c, value);
    if (bin == c || bits[row * c + bin] == value) {
      const int64_t key = signed_key(score, item + query.item_offset);
      bin += position(keys(row) + bin, c - bin, key);
      // After the next piece's first key too: that piece counts it.
      if (bin == c && first_key + c < query.c && keys(row)[c] < key) return;
    }
    if (bin > 0) atomicAdd(&bins[row * c + bin - 1], 1u);
  }

  __device__ void flush() {
    __syncthreads();
    BDKERNELS_NO_UNROLL
    for (int i = threadIdx.x; i < rows * c; i += blockDim.x) {
      const int64_t at = (first_row + i / c) * (query.c + 1) + first_key + i % c + 1;
      if (bins[i]) add(&query.histogram[at], bins[i]);
    }
  }
};

// The block of these rows and the piece blockIdx.z of their keys.
__device__ Histogram histogram_of(const Query& query, int64_t first_row, int64_t rows, int64_t n, int64_t piece,
                                  unsigned char* shared) {
  const int64_t first_key = blockIdx.z * piece;
  const int c = static_cast<int>(query.c - first_key < piece ? query.c - first_key : piece);
  uint32_t* bits = reinterpret_cast<uint32_t*>(shared);
  const int r = static_cast<int>(rows);
  return {query, first_row, n, r, first_key, c, bits, bits + r * c};
}

template <class P>
__global__ void __launch_bounds__(P::kThreads, P::kBlocksOfSm)
    count_above_kernel(P product, int64_t items_of_block, int64_t piece, Query query) {
  BDKERNELS_DYNAMIC_SHARED(shared);
  const int64_t first_user = int64_t{blockIdx.x} * P::kUsers, live = live_rows(query, product.n_users);
  if (first_user >= live) return;
  product.n_users = live;
  const int64_t begin = blockIdx.y * items_of_block, n = product.items.n;
  const int64_t rows = live - first_user < P::kUsers ? live - first_user : P::kUsers;
  Histogram histogram = histogram_of(query, first_user, rows, n, piece, shared + P::kSharedBytes);
  histogram.clear();
  product.run(reinterpret_cast<typename P::Stage*>(shared), first_user, begin,
              begin + items_of_block < n ? begin + items_of_block : n,
              [&](int user, int64_t item, float score) { histogram.count(user, item, score); });
  histogram.flush();
}

__global__ void __launch_bounds__(kBlockThreads)
    count_above_block_kernel(const float* scores, int64_t all_rows, int64_t n, int64_t items_of_block, int64_t piece,
                             Query query) {
  BDKERNELS_DYNAMIC_SHARED(shared);
  const int64_t row = blockIdx.x, begin = blockIdx.y * items_of_block;
  if (row >= live_rows(query, all_rows)) return;
  Histogram histogram = histogram_of(query, row, 1, n, piece, shared);
  histogram.clear();
  for (int64_t item = begin + threadIdx.x; item < n && item < begin + items_of_block; item += kBlockThreads) {
    histogram.count(0, item, scores[row * n + item]);
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

struct Given {
  const float* scores;
  int64_t n_items;

  __device__ float operator()(int64_t row, int64_t item) const { return scores[row * n_items + item]; }
  BDKERNELS_HD int64_t n() const { return n_items; }
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

template <int kUsers, int kItems, class T>
void count_tiles(const Users& users, const Table<T>& table, const Query& query, int64_t most_keys, int64_t blocks,
                 Stream stream) {
  using P = Product<T, kUsers, kItems>;
  const auto [piece, pieces] = pieces_of(query.c, most_keys);
  const int64_t tiles = div_up(users.n, P::kUsers);
  const Split split(table.n, P::kItems, tiles * pieces, blocks);
  const dim3 grid(static_cast<unsigned>(tiles), split.n, static_cast<unsigned>(pieces));
  const size_t bytes = P::kSharedBytes + static_cast<size_t>(2 * sizeof(uint32_t) * kUsers * piece);
  launch(count_above_kernel<P>, grid, dim3(P::kThreads), bytes, stream, P(users, table), split.items_of_block, piece, query);
}

}  // namespace

void count_above(const Users& users, const Items& items, const Query& query, const Seen& seen, int64_t blocks,
                 Stream stream) {
  with_table(items, [&](auto table) {
    if (query.c <= 128) {
      count_tiles<64, 64>(users, table, query, 128, blocks, stream);
    } else if (query.c <= 512) {
      count_tiles<16, 128>(users, table, query, 512, blocks, stream);
    } else {
      count_tiles<8, 128>(users, table, query, 1024, blocks, stream);
    }
    uncount_seen(Dot<typename decltype(table)::Element>{users.data, table}, users.n, seen, query, stream);
  });
}

void count_above_block(const float* scores, int64_t rows, int64_t n, const Query& query, const Seen& seen, int64_t blocks,
                       Stream stream) {
  const auto [piece, pieces] = pieces_of(query.c, 4096);
  const Split split(n, kBlockThreads, rows * pieces, blocks);
  const dim3 grid(static_cast<unsigned>(rows), split.n, static_cast<unsigned>(pieces));
  launch(count_above_block_kernel, grid, dim3(kBlockThreads), static_cast<size_t>(2 * sizeof(uint32_t) * piece), stream,
         scores, rows, n, split.items_of_block, piece, query);
  uncount_seen(Given{scores, n}, rows, seen, query, stream);
}

}  // namespace bdkernels::cuda
