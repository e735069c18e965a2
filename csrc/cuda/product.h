// The product of a tile of users and a range of items, score by score, in registers: nothing of size [B, N] is stored.
//
// A block goes through its items kItems at a time, and through the factors kDepth at a time. While one piece of both tables
// is multiplied, the next is on its way into the other half of the shared memory (cp.async, 16 bytes a thread and
// instruction; where rows are not aligned to 16 bytes, element by element). How a piece is multiplied is the tile's matter:
//
//   Fma            one sequential __fmaf_rn over the factors for each score, from the bias: the same bits as core/score.h
//                  wherever the tile begins or ends
//   Mma (mma.h)    tensor cores
//
// Floor: 2 B N d FLOPs; of memory, N d values once if the blocks of all users keep pace with one another in L2.
#pragma once
#include <algorithm>

#include "device.h"

namespace bdkernels::cuda {

constexpr int kTileThreads = 256;  // of a block, whatever its tile

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T of[4];
};

// A thread's sums are [kThreadUsers, kThreadItems], spread over the tile so that neighbours read neighbouring rows. Per
// 4 factors it reads kThreadUsers + kThreadItems vectors of 4, for 4 kThreadUsers kThreadItems FMAs. Vectors of 32 items
// take a warp 4 cycles of shared memory, those of the one or two users that it has only one: where it has one user beside
// the other, 16 sums are of 8 users and 2 items.
template <class T, int kUsersOfTile, int kItemsOfTile>
struct Fma {
  using Element = T;
  static constexpr int kUsers = kUsersOfTile, kItems = kItemsOfTile, kDepth = 16;
  static constexpr int kThreadUsers = kUsers < 64 && kUsers * kItems == 16 * kTileThreads ? 8 : 4;
  static constexpr int kRows = kUsers / kThreadUsers;
  static constexpr int kColumns = kTileThreads / kRows;  // threads beside one another, on different items
  static constexpr int kThreadItems = kItems / kColumns;
  static constexpr int kUsersOfWarp = kColumns < kWarp ? kWarp / kColumns : 1;  // whose scores its lanes have side by side
  static constexpr int kBlocksOfSm = kThreadItems > 1 ? 2 : 1;  // at least: registers enough that nothing spills
  static_assert(kUsers % kThreadUsers == 0 && kItems % kColumns == 0 && kThreadItems > 0);

  // Rows are 16 bytes longer than needed: lanes that read one column of 8 rows then use all banks.
  template <class V>
  static constexpr int kPitch = kDepth + 16 / sizeof(V);

  struct alignas(16) Stage {
    float users[kUsers * kPitch<float>];
    T items[kItems * kPitch<T>];
  };

  // Where in one of the tables of a stage, of kRows, factor k of row r lies. 16 aligned bytes of a row stay together.
  template <class V, int>
  __device__ static int place(int r, int k) {
    return r * kPitch<V> + k;
  }

  // The user of the tile, and the item from its first, that a thread's sums[i][j] belongs to.
  __device__ static int user_of(int i) { return threadIdx.x / kColumns + i * kRows; }
  __device__ static int item_of(int j) { return threadIdx.x % kColumns + j * kColumns; }

  // The zeros past d are not multiplied: they would make 0.0 of -0.0.
  template <bool kWhole>
  __device__ static void multiply(const Stage& stage, int depth, float (&sums)[kThreadUsers][kThreadItems]) {
    BDKERNELS_UNROLL
    for (int k = 0; k < kDepth; k += 4) {
      float u[kThreadUsers][4], v[kThreadItems][4];
      BDKERNELS_UNROLL
      for (int i = 0; i < kThreadUsers; ++i) four(stage.users + place<float, kUsers>(user_of(i), k), u[i]);
      BDKERNELS_UNROLL
      for (int j = 0; j < kThreadItems; ++j) four(stage.items + place<T, kItems>(item_of(j), k), v[j]);
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

 private:
  template <class V>
  __device__ static void four(const V* from, float (&to)[4]) {
    const Four<V> values = *reinterpret_cast<const Four<V>*>(from);
    BDKERNELS_UNROLL
    for (int e = 0; e < 4; ++e) to[e] = widen(values.of[e]);
  }
};

template <class TileOf>
struct Product {
  using Tile = TileOf;
  using T = typename Tile::Element;
  using Stage = typename Tile::Stage;
  static constexpr int kUsers = Tile::kUsers, kItems = Tile::kItems, kDepth = Tile::kDepth;
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

  // How many users the tile from first_user on has.
  __device__ int rows(int64_t first_user) const {
    return static_cast<int>(n_users - first_user < kUsers ? n_users - first_user : kUsers);
  }

  // Calls take(sums, item0) in every thread for each tile of the items in [begin, end), of which item0 is the first. Sums of
  // users beyond the last and of items from `end` on are among them. All threads of the block come here, and leave with all
  // of them done.
  template <class Take>
  __device__ void run(Stage* stages, int64_t first_user, int64_t begin, int64_t end, Take take) const {
    const int pieces = items.d > kDepth ? static_cast<int>((items.d + kDepth - 1) / kDepth) : 1;
    float sums[Tile::kThreadUsers][Tile::kThreadItems];
    int64_t item0 = begin, next_item0 = begin;  // of this step, and of what is loaded next
    int piece = 0, next_piece = 0;
    const auto load_next = [&](Stage& stage) {
      load<float, kUsers>(stage.users, users, items.d, first_user, n_users, int64_t{next_piece} * kDepth, vector_users);
      load<T, kItems>(stage.items, items.rows, items.stride, next_item0, end, int64_t{next_piece} * kDepth, vector_items);
      if (++next_piece == pieces) next_piece = 0, next_item0 += kItems;
    };
    load_next(stages[0]);
    copies_commit();
    for (int now = 0; item0 < end; now ^= 1) {
      if (next_item0 < end) load_next(stages[now ^ 1]);
      copies_commit();
      copies_wait<1>();
      __syncthreads();
      if (piece == 0) {
        BDKERNELS_UNROLL
        for (int j = 0; j < Tile::kThreadItems; ++j) {
          const int64_t item = item0 + Tile::item_of(j);
          const float bias = item < end ? bias_of(items, item) : 0.0f;
          BDKERNELS_UNROLL
          for (int i = 0; i < Tile::kThreadUsers; ++i) sums[i][j] = bias;
        }
      }
      const int64_t left = items.d - int64_t{piece} * kDepth;
      if (left >= kDepth) {
        Tile::template multiply<true>(stages[now], kDepth, sums);
      } else {
        Tile::template multiply<false>(stages[now], static_cast<int>(left), sums);
      }
      if (++piece == pieces) {
        take(sums, item0);
        piece = 0;
        item0 += kItems;
      }
      __syncthreads();
    }
  }

 private:
  // kDepth factors from k0 of kRows rows from `first`; zeros past `end` and past d.
  template <class V, int kRows>
  __device__ void load(V* to, const V* table, int64_t stride, int64_t first, int64_t end, int64_t k0, bool vector) const {
    constexpr int kPiece = 16 / sizeof(V), kPieces = kDepth / kPiece;
    for (int i = threadIdx.x; i < kRows * kPieces; i += kTileThreads) {
      const int r = i / kPieces, k = i % kPieces * kPiece;
      const int64_t left = first + r < end ? items.d - k0 - k : 0;
      const int valid = left < 0 ? 0 : left < kPiece ? static_cast<int>(left) : kPiece;
      const V* from = valid ? table + (first + r) * stride + k0 + k : table;
      V* target = to + Tile::template place<V, kRows>(r, k);
      if (vector) {
        copy_async(target, from, valid * static_cast<int>(sizeof(V)));
      } else {
        for (int e = 0; e < kPiece; ++e) target[e] = e < valid ? from[e] : V{};
      }
    }
  }
};

// How many of the tile's items from item0 on come before `end`.
__device__ inline int items_before(int64_t end, int64_t item0, int items_of_tile) {
  return end - item0 < items_of_tile ? static_cast<int>(end - item0) : items_of_tile;
}

// Calls take(user of the tile, item, score) for each of a thread's sums that is of one of the tile's `rows` and before
// `end`.
template <class Tile, int kUsers, int kItems, class Take>
__device__ void for_each_score(const float (&sums)[kUsers][kItems], int rows, int64_t item0, int64_t end, Take take) {
  const int items = items_before(end, item0, Tile::kItems);
  BDKERNELS_UNROLL
  for (int i = 0; i < kUsers; ++i) {
    BDKERNELS_UNROLL
    for (int j = 0; j < kItems; ++j) {
      if (Tile::user_of(i) < rows && Tile::item_of(j) < items) take(Tile::user_of(i), item0 + Tile::item_of(j), sums[i][j]);
    }
  }
}

// How a launch splits the items into ranges, each of which `others` blocks go through: `places` blocks run at once (a wave),
// and a block takes as long as its tiles and kOverhead more. Of 1 to 16 waves the number that takes least time, so that no
// last wave is nearly empty.
struct Split {
  static constexpr int64_t kMostWaves = 16;
  static constexpr int64_t kOverhead = 2;  // tiles: to fill the pipeline, and what is done before and after

  int64_t items_of_block = 0;
  unsigned n = 0;  // ranges, `most` at most; none is empty

  Split(int64_t items, int64_t tile, int64_t others, int64_t places, int64_t most = 65535) {
    const int64_t tiles = div_up(items, tile), blocks = others > 0 ? others : 1;
    int64_t least = INT64_MAX;
    for (int64_t waves = 1; waves <= kMostWaves && tiles > 0; ++waves) {
      const int64_t room = std::min({waves * places / blocks, tiles, most}), of_block = div_up(tiles, room < 1 ? 1 : room);
      const int64_t ranges = div_up(tiles, of_block), takes = div_up(ranges * blocks, places) * (of_block + kOverhead);
      if (takes >= least) continue;
      least = takes;
      items_of_block = of_block * tile;
      n = static_cast<unsigned>(ranges);
    }
  }
};

}  // namespace bdkernels::cuda
