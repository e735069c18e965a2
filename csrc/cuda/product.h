// The product of a tile of users and a range of items, score by score, in registers: nothing of size [B, N] is stored.
//
// A block goes through its items kItems at a time, and through the factors kDepth at a time. While one piece of both tables
// is multiplied, the next is on its way into the other half of the shared memory (cp.async, 16 bytes a thread and
// instruction; where rows are not aligned to 16 bytes, element by element). A thread has kThreadUsers x kThreadItems sums,
// each one sequential
// __fmaf_rn over the factors that starts at the bias: the same bits as core/score.h wherever the tile begins or ends.
//
// Per step and thread it reads 4 (kThreadUsers + kThreadItems) factors in vectors of 4 for 4 kThreadUsers kThreadItems FMAs.
// Its floor: 2 B N d FLOPs in fp32; of memory, N d values once if the blocks of all users keep pace with one another in L2.
#pragma once
#include "device.h"

namespace bdkernels::cuda {

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T of[4];
};

template <class T, int kUsersOfTile, int kItemsOfTile>
struct Product {
  static constexpr int kUsers = kUsersOfTile, kItems = kItemsOfTile;
  static constexpr int kThreads = 256, kDepth = 16;
  static constexpr int kThreadUsers = 4;
  static constexpr int kColumns = kThreads / (kUsers / kThreadUsers);  // threads beside one another, on different items
  static constexpr int kRows = kUsers / kThreadUsers;
  static constexpr int kThreadItems = kItems / kColumns;
  static constexpr int kBlocksOfSm = kThreadItems > 1 ? 2 : 1;  // at least: registers enough that nothing spills
  static_assert(kUsers % kThreadUsers == 0 && kItems % kColumns == 0 && kThreadItems > 0);

  // Rows are 16 bytes longer than needed: lanes that read one column of 8 rows then use all banks.
  template <class V>
  static constexpr int kPitch = kDepth + 16 / sizeof(V);

  struct alignas(16) Stage {
    float users[kUsers * kPitch<float>];
    T items[kItems * kPitch<T>];
  };
  static constexpr size_t kSharedBytes = 2 * sizeof(Stage);

  const float* users;  // [n_users, d], rows one after the other
  int64_t n_users;
  Table<T> items;
  bool vector_users, vector_items;  // whether every row starts at a multiple of 16 bytes

  Product(const Users& users, const Table<T>& items)
      : users(users.data),
        n_users(users.n),
        items(items),
        vector_users(aligned(users.data, items.d * 4) && items.d > 0),
        vector_items(aligned(items.rows, items.stride * static_cast<int64_t>(sizeof(T))) && items.d > 0) {}

  static bool aligned(const void* data, int64_t row_bytes) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && row_bytes % 16 == 0;
  }

  // Calls take(user of the tile, item, score) for each user from first_user and item in [begin, end), by the thread that has
  // the sum. All threads of the block come here, and leave with all of them done.
  template <class Take>
  __device__ void run(Stage* stages, int64_t first_user, int64_t begin, int64_t end, Take take) const {
    const int column = threadIdx.x % kColumns, row = threadIdx.x / kColumns;
    const int64_t pieces = items.d > kDepth ? (items.d + kDepth - 1) / kDepth : 1;
    const int64_t steps = (end - begin + kItems - 1) / kItems * pieces;
    float sums[kThreadUsers][kThreadItems];
    int64_t item0 = begin, piece = 0, next_item0 = begin, next_piece = 0;  // of this step, and of what is loaded next
    const auto load_next = [&](Stage& stage) {
      load<float, kUsers>(stage.users, users, items.d, first_user, n_users, next_piece * kDepth, vector_users);
      load<T, kItems>(stage.items, items.rows, items.stride, next_item0, end, next_piece * kDepth, vector_items);
      if (++next_piece == pieces) next_piece = 0, next_item0 += kItems;
    };
    load_next(stages[0]);
    copies_commit();
    for (int64_t step = 0; step < steps; ++step) {
      if (step + 1 < steps) load_next(stages[(step + 1) % 2]);
      copies_commit();
      copies_wait<1>();
      __syncthreads();
      if (piece == 0) {
        BDKERNELS_UNROLL
        for (int j = 0; j < kThreadItems; ++j) {
          const int64_t item = item0 + column + j * kColumns;
          const float bias = item < end ? bias_of(items, item) : 0.0f;
          BDKERNELS_UNROLL
          for (int i = 0; i < kThreadUsers; ++i) sums[i][j] = bias;
        }
      }
      const int64_t left = items.d - piece * kDepth;
      if (left >= kDepth) {
        multiply<true>(stages[step % 2], row, column, kDepth, sums);
      } else {
        multiply<false>(stages[step % 2], row, column, static_cast<int>(left), sums);
      }
      if (++piece == pieces) {
        BDKERNELS_UNROLL
        for (int i = 0; i < kThreadUsers; ++i) {
          BDKERNELS_UNROLL
          for (int j = 0; j < kThreadItems; ++j) {
            const int user = row + i * kRows;
            const int64_t item = item0 + column + j * kColumns;
            if (first_user + user < n_users && item < end) take(user, item, sums[i][j]);
          }
        }
        piece = 0;
        item0 += kItems;
      }
      __syncthreads();
    }
  }

 private:
  // kDepth factors from k0 of kRows rows from `first`; zeros past `end` and past d.
  template <class V, int kRowsOfTile>
  __device__ void load(V* to, const V* table, int64_t stride, int64_t first, int64_t end, int64_t k0, bool vector) const {
    constexpr int kPiece = 16 / sizeof(V), kPieces = kDepth / kPiece;
    for (int i = threadIdx.x; i < kRowsOfTile * kPieces; i += kThreads) {
      const int r = i / kPieces, k = i % kPieces * kPiece;
      const int64_t left = first + r < end ? items.d - k0 - k : 0;
      const int valid = left < 0 ? 0 : left < kPiece ? static_cast<int>(left) : kPiece;
      const V* from = valid ? table + (first + r) * stride + k0 + k : table;
      V* target = to + r * kPitch<V> + k;
      if (vector) {
        copy_async(target, from, valid * static_cast<int>(sizeof(V)));
      } else {
        for (int e = 0; e < kPiece; ++e) target[e] = e < valid ? from[e] : V{};
      }
    }
  }

  // The zeros past d are not multiplied either: they would make 0.0 of -0.0.
  template <bool kWhole>
  __device__ static void multiply(const Stage& stage, int row, int column, int depth,
                                  float (&sums)[kThreadUsers][kThreadItems]) {
    BDKERNELS_UNROLL
    for (int k = 0; k < kDepth; k += 4) {
      float u[kThreadUsers][4], v[kThreadItems][4];
      BDKERNELS_UNROLL
      for (int i = 0; i < kThreadUsers; ++i) four(stage.users + (row + i * kRows) * kPitch<float> + k, u[i]);
      BDKERNELS_UNROLL
      for (int j = 0; j < kThreadItems; ++j) four(stage.items + (column + j * kColumns) * kPitch<T> + k, v[j]);
      BDKERNELS_UNROLL
      for (int e = 0; e < 4; ++e) {
        if (!kWhole && k + e >= depth) break;
        BDKERNELS_UNROLL
        for (int i = 0; i < kThreadUsers; ++i) {
          BDKERNELS_UNROLL
          for (int j = 0; j < kThreadItems; ++j) sums[i][j] = __fmaf_rn(u[i][e], v[j][e], sums[i][j]);
        }
      }
    }
  }

  template <class V>
  __device__ static void four(const V* from, float (&to)[4]) {
    const Four<V> values = *reinterpret_cast<const Four<V>*>(from);
    BDKERNELS_UNROLL
    for (int e = 0; e < 4; ++e) to[e] = widen(values.of[e]);
  }
};

// How a launch splits the items among blocks, so that there are about `blocks` of them.
struct Split {
  int64_t items_of_block;
  unsigned n;

  Split(int64_t items, int64_t tile, int64_t others, int64_t blocks) {
    const int64_t tiles = div_up(items, tile), wanted = blocks / (others > 0 ? others : 1);
    const int64_t parts = wanted < 1 ? 1 : wanted > 65535 ? 65535 : wanted;
    items_of_block = div_up(tiles, parts) * tile;
    n = items > 0 ? static_cast<unsigned>(div_up(items, items_of_block)) : 0;
  }
};

}  // namespace bdkernels::cuda
