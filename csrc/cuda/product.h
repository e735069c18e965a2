// The product of a tile of users and a range of items, score by score, in registers: nothing of size [B, N] is stored.
//
// A block goes through its items kItems at a time, and through the factors kDepth at a time. While one piece of both tables
// is multiplied, the next is on its way into the other half of the shared memory, by asynchronous copies of 16, 8 or 4
// bytes, the most that every row of the table is a multiple of: 4 for d = 5 and 8 for d = 50 in float32. Only 16-bit rows at
// odd elements are loaded one by one. How a piece is multiplied is the tile's matter:
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
  // whose scores its lanes have side by side
  static constexpr int kUsersOfWarp = kThreadItems >= 8 ? 4 : kColumns < kWarp ? kWarp / kColumns : 1;
  static constexpr int kColumnsOfWarp = kWarp / kUsersOfWarp, kWarpsBeside = kColumns / kColumnsOfWarp;
  static constexpr int kBlocksOfSm = 2;
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
  __device__ static int user_of(int i) { return warp() / kWarpsBeside * kUsersOfWarp + lane_row() + i * kRows; }
  __device__ static int item_of(int j) { return warp() % kWarpsBeside * kColumnsOfWarp + lane_column() + j * kColumns; }

  // The zeros past d are not multiplied: they would make 0.0 of -0.0.
  template <bool kWhole>
  __device__ static void multiply(const Stage& stage, int depth, float (&sums)[kThreadUsers][kThreadItems]) {
    BDKERNELS_UNROLL
    for (int k = 0; k < kDepth; k += 4) {
      if (!kWhole && k >= depth) break;
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
  // A warp's lanes of 4 x 8 lie so that each two neighbours share an item, and each two beside them a user: half a warp then
  // reads 128 bytes of items, or 32 of users, at a time.
  __device__ static int warp() { return threadIdx.x / kWarp; }
  __device__ static int lane_row() {
    const int lane = threadIdx.x % kWarp;
    return kUsersOfWarp == 4 ? lane % 2 + lane / 16 * 2 : lane / kColumnsOfWarp;
  }
  __device__ static int lane_column() {
    const int lane = threadIdx.x % kWarp;
    return kUsersOfWarp == 4 ? lane / 2 % 8 : lane % kColumnsOfWarp;
  }

  template <class V>
  __device__ static void four(const V* from, float (&to)[4]) {
    const Four<V> values = *reinterpret_cast<const Four<V>*>(from);
    BDKERNELS_UNROLL
    for (int e = 0; e < 4; ++e) to[e] = widen(values.of[e]);
  }
};

// How many of the tile's items from item0 on come before `end`.
__device__ inline int items_before(int64_t end, int64_t item0, int items_of_tile) {
  return end - item0 < items_of_tile ? static_cast<int>(end - item0) : items_of_tile;
}

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
  int user_copy, item_copy;  // bytes of a copy, 0 for single elements

  Product(const Users& users, const Table<T>& items)
      : users(users.data),
        n_users(users.n),
        items(items),
        user_copy(copy_bytes(users.data, items.d, items.d)),
        item_copy(copy_bytes(items.rows, items.d, items.stride)) {}

  // The most bytes that all rows begin at a multiple of and consist of, so that no copy is cut by the end of a row.
  template <class V>
  static int copy_bytes(const V* data, int64_t d, int64_t stride) {
    const uint64_t all = reinterpret_cast<uintptr_t>(data) | (d * sizeof(V)) | (stride * sizeof(V));
    return all % 16 == 0 ? 16 : all % 8 == 0 ? 8 : all % 4 == 0 ? 4 : 0;
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
      const int64_t k0 = int64_t{next_piece} * kDepth;
      load<kUsers>(stage.users, users, items.d, first_user, n_users, k0, user_copy);
      load<kItems>(stage.items, items.rows, items.stride, next_item0, end, k0, item_copy);
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
  // kDepth factors from k0 of kRows rows from `first`; zeros past `end` and past d. Which copies: the same in all threads.
  template <int kRows, class V>
  __device__ void load(V* to, const V* table, int64_t stride, int64_t first, int64_t end, int64_t k0, int bytes) const {
    if (bytes == 16) {
      load_by<16, kRows>(to, table, stride, first, end, k0);
    } else if (bytes == 8) {
      load_by<8, kRows>(to, table, stride, first, end, k0);
    } else if (sizeof(V) == 4 || bytes == 4) {
      load_by<4, kRows>(to, table, stride, first, end, k0);
    } else {
      load_by<0, kRows>(to, table, stride, first, end, k0);
    }
  }

  // A thread copies from every kStep-th row, always the same factors: one comparison and one addition to the address each.
  template <int kBytes, int kRows, class V>
  __device__ void load_by(V* to, const V* table, int64_t stride, int64_t first, int64_t end, int64_t k0) const {
    constexpr int kPiece = kBytes ? kBytes / sizeof(V) : 1, kPieces = kDepth / kPiece, kStep = kTileThreads / kPieces;
    const int row = threadIdx.x / kPieces, k = threadIdx.x % kPieces * kPiece;
    const int rows = k0 + k < items.d ? items_before(end, first, kRows) : 0;
    const V* from = table + (first + row) * stride + k0 + k;
    V* target = to + Tile::template place<V, kRows>(row, k);
    constexpr int kPitch = Tile::template kPitch<V>;
    BDKERNELS_UNROLL
    for (int r = 0; r < kRows; r += kStep, from += kStep * stride) {
      if (kRows % kStep != 0 && row + r >= kRows) break;
      if constexpr (kBytes == 0) {
        target[r * kPitch] = row + r < rows ? *from : V{};
      } else {
        copy_async<kBytes>(target + r * kPitch, from, row + r < rows);
      }
    }
  }
};

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
