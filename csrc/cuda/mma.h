// A tile whose products are taken on tensor cores: factors rounded to tf32, bfloat16 or float16, sums in fp32.
//
// A warp multiplies 16 users by 8 items and 16 factors at a time (in tf32, twice 8 factors). Which 4 of the 16 a lane brings
// is free, so long as users and items agree: it takes 4 that lie together, in one load of shared memory. Scores are right to
// the rounding of the factors and of the tensor cores, which add in an order of their own.
#pragma once
#include "product.h"

namespace bdkernels::cuda {

// A thread's sums: of kThreadUsers / 2 x kThreadItems / 2 products of 16 x 8, a warp's beside and below one another, those
// two rows and two columns of each that mma gives to the lane. Per 16 factors it reads a vector of 4 for each row and for
// each pair of its columns.
template <class T, class Operand, int kUsersOfTile, int kItemsOfTile>
struct Mma {
  using Element = T;
  static constexpr int kUsers = kUsersOfTile, kItems = kItemsOfTile, kDepth = 32;
  static constexpr int kRows = kUsers < 32 ? 1 : kUsers / 32, kColumns = kTileThreads / kWarp / kRows;  // of warps
  static constexpr int kWarpUsers = kUsers / kRows, kWarpItems = kItems / kColumns;
  static constexpr int kThreadUsers = kWarpUsers / 8, kThreadItems = kWarpItems / 4;
  static constexpr int kUsersOfWarp = 8;  // whose scores its lanes have side by side
  static constexpr int kBlocksOfSm = 2;
  static constexpr int kChunk = 16;  // factors of a row that lie together: lanes that read 4 each then use all banks
  static_assert(kWarpUsers % 16 == 0 && kWarpItems % 8 == 0 && kColumns * kRows * kWarp == kTileThreads);

  struct alignas(16) Stage {
    float users[kUsers * kDepth];
    T items[kItems * kDepth];
  };

  template <class>
  static constexpr int kPitch = kChunk;
  template <class V, int kRowsOfTable>
  __device__ static int place(int r, int k) {
    return (k / kChunk * kRowsOfTable + r) * kPitch<V> + k % kChunk;
  }

  __device__ static int user_of(int i) { return threadIdx.x / kWarp / kColumns * kWarpUsers + i * 8 + group(); }
  __device__ static int item_of(int j) { return first_item() + j / 2 * 8 + lane() * 2 + j % 2; }

  // Zeros past d change nothing.
  template <bool>
  __device__ static void multiply(const Stage& stage, int, float (&sums)[kThreadUsers][kThreadItems]) {
    BDKERNELS_UNROLL
    for (int k = 0; k < kDepth; k += kChunk) {
      uint32_t u[kThreadUsers][kWords], v[kThreadItems / 2][kWords];
      BDKERNELS_UNROLL
      for (int i = 0; i < kThreadUsers; ++i) {
        operands(stage.users + place<float, kUsers>(user_of(i), k + 4 * lane()), u[i]);
      }
      BDKERNELS_UNROLL
      for (int j = 0; j < kThreadItems / 2; ++j) {
        operands(stage.items + place<T, kItems>(first_item() + j * 8 + group(), k + 4 * lane()), v[j]);
      }
      BDKERNELS_UNROLL
      for (int w = 0; w < kWords; w += 2) {
        BDKERNELS_UNROLL
        for (int i = 0; i < kThreadUsers; i += 2) {
          BDKERNELS_UNROLL
          for (int j = 0; j < kThreadItems; j += 2) {
            float (&upper)[kThreadItems] = sums[i], (&lower)[kThreadItems] = sums[i + 1];
            const uint32_t a[4] = {u[i][w], u[i + 1][w], u[i][w + 1], u[i + 1][w + 1]},
                           b[2] = {v[j / 2][w], v[j / 2][w + 1]};
            mma<Operand>(a, b, upper[j], upper[j + 1], lower[j], lower[j + 1]);
          }
        }
      }
    }
  }

 private:
  static constexpr int kWords = std::is_same_v<Operand, Tf32> ? 4 : 2;  // registers that 4 operands take

  __device__ static int group() { return threadIdx.x % kWarp / 4; }
  __device__ static int lane() { return threadIdx.x % 4; }  // of its group
  __device__ static int first_item() { return threadIdx.x / kWarp % kColumns * kWarpItems; }

  // 4 factors, rounded and packed.
  template <class V>
  __device__ static void operands(const V* from, uint32_t (&to)[kWords]) {
    const Four<V> four = *reinterpret_cast<const Four<V>*>(from);
    BDKERNELS_UNROLL
    for (int w = 0; w < kWords; ++w) {
      if constexpr (std::is_same_v<Operand, Tf32>) {
        to[w] = to_tf32(widen(four.of[w]));
      } else if constexpr (std::is_same_v<Operand, V>) {
        to[w] = four.of[2 * w].bits | uint32_t{four.of[2 * w + 1].bits} << 16;
      } else {
        to[w] = to_pair<Operand>(widen(four.of[2 * w]), widen(four.of[2 * w + 1]));
      }
    }
  }
};

}  // namespace bdkernels::cuda
