// How many scores lie between neighbouring thresholds of their user, counted in shared memory as they leave the registers.
//
// A user's thresholds lie in a row of 2^L words in bit-reversed order: slot `reversed(i)` has the i-th from the lowest. A
// search then makes steps of 1, 2, 4, ... slots: it begins at slot 0, the lowest threshold, and goes from `at` to
// `at + 2^level` where the threshold there is at most the score. After L levels it stands at the last threshold that is at
// most the score, and the same slot of the bins is where the score is counted. The slots that a level looks at are the
// words 2^level .. 2^(level + 1) - 1, so the first five levels have no bank conflicts; in sorted order the same search makes
// steps of 2^(L - 1), ..., 2, 1 words, and nearly all lanes want the same bank. Slots of no threshold hold NaN, which is at
// most nothing.
//
// A level is one load, one comparison, and one instruction each for the place and for the threshold there, which stays in a
// register: so no load is needed to see that a score equals it. Only then do the whole keys in global memory decide by id.
#pragma once
#include "product.h"

namespace bdkernels::cuda {

// How the keys of a user are cut into pieces, each counted by blocks of its own. A block also looks at the first key of the
// next piece, which counts what comes after it.
struct Pieces {
  int64_t keys, n;
  int levels;  // of a search

  // At most 2^most_levels keys are looked at. One piece even where there is no key: every score is looked at, for NaN.
  Pieces(int64_t c, int most_levels) : levels(1) {
    const int64_t most = int64_t{1} << most_levels;
    keys = c < 1 ? 1 : c <= most ? c : most - 1;
    n = c < 1 ? 1 : div_up(c, keys);
    while (int64_t{1} << levels < (n > 1 ? most : keys)) ++levels;
  }
};

// With more thresholds, fewer users share a block: 8 bytes of shared memory for each.
constexpr int most_levels(int users) {
  if (users == 1) return 12;
  return users >= 64 ? 7 : users >= 32 ? 8 : users >= 16 ? 9 : 10;
}

// The thresholds and bins of the users of a tile.
template <class Tile>
struct Histogram {
  static constexpr int kMostLevels = most_levels(Tile::kUsers);

  Query query;
  int64_t first_row, n;  // n: items, to name one that is NaN
  int rows;
  int64_t first_key;
  int c;       // keys from first_key that this block has
  int looked;  // and one more if there is one: what comes after it, the next piece counts
  int levels;
  float* thresholds;
  uint32_t* bins;          // each [rows of the tile, pitch]
  uint32_t first_address;  // of the thresholds

  // Rows that the lanes of a warp search side by side begin in different banks, as far apart as can be.
  BDKERNELS_HD static int pitch_of(int levels) {
    return (1 << levels) + (Tile::kUsersOfWarp > 1 ? kBanks / Tile::kUsersOfWarp : 0);
  }
  // Thresholds, bins, and a word for each lane of a warp.
  static size_t bytes(int levels) { return 4 * (2 * Tile::kUsers * pitch_of(levels) + kWarp); }

  // The block of these rows and the piece blockIdx.z of their keys.
  __device__ Histogram(const Query& query, int64_t first_row, int rows, int64_t n, const Pieces& pieces,
                       unsigned char* shared)
      : query(query), first_row(first_row), n(n), rows(rows), first_key(blockIdx.z * pieces.keys), levels(pieces.levels) {
    const int64_t left = query.c - first_key;
    c = static_cast<int>(left < pieces.keys ? left : pieces.keys);
    looked = c + (left > pieces.keys);
    thresholds = reinterpret_cast<float*>(shared);
    bins = reinterpret_cast<uint32_t*>(thresholds + Tile::kUsers * pitch_of(levels));
    first_address = shared_address(thresholds);
    for_each_slot([&](int row, int number, int slot) {
      const bool there = row < rows && number < looked;
      thresholds[slot] = there ? score_of_key(keys(row)[number]) : number == 0 ? INFINITY : NAN;
      bins[slot] = 0;
    });
    __syncthreads();
  }

  // A thread's scores: places as of the product's `sums`. All searches go side by side.
  template <int kUsers, int kItems>
  __device__ void count(float (&scores)[kUsers][kItems], int64_t item0, int64_t end) const {
    const int items = items_before(end, item0, Tile::kItems);
    if (items < Tile::kItems) leave_out(scores, items);
    uint32_t at[kUsers][kItems];
    float below[kUsers][kItems];
    BDKERNELS_UNROLL
    for (int i = 0; i < kUsers; ++i) {
      const uint32_t row = first_address + 4 * Tile::user_of(i) * pitch_of(levels);
      const float lowest = load_shared(row), middle = load_shared(row + 4);  // for all of its items
      BDKERNELS_UNROLL
      for (int j = 0; j < kItems; ++j) {
        at[i][j] = row;
        below[i][j] = lowest;
        step(middle, scores[i][j], 4, at[i][j], below[i][j]);
      }
    }
    BDKERNELS_UNROLL
    for (int level = 1; level < kMostLevels; ++level) {
      if (level >= levels) break;
      BDKERNELS_UNROLL
      for (int i = 0; i < kUsers; ++i) {
        BDKERNELS_UNROLL
        for (int j = 0; j < kItems; ++j) {
          step(load_shared(at[i][j] + (4u << level)), scores[i][j], 4u << level, at[i][j], below[i][j]);
        }
      }
    }
    const uint32_t to_bins = 4 * Tile::kUsers * pitch_of(levels);
    // What is not counted goes to a word of each lane, after the bins: a branch would take more.
    const uint32_t nowhere = first_address + to_bins + 4 * (threadIdx.x % kWarp);
    bool equal = false;
    BDKERNELS_UNROLL
    for (int i = 0; i < kUsers; ++i) {
      BDKERNELS_UNROLL
      for (int j = 0; j < kItems; ++j) {
        count_shared((below[i][j] < scores[i][j] ? at[i][j] : nowhere) + to_bins);
        equal |= equals(below[i][j], scores[i][j]);
      }
    }
    if (equal) count_equal(scores, below, item0, items);
  }

  __device__ void flush() const {
    __syncthreads();
    for_each_slot([&](int row, int number, int slot) {
      const uint32_t many = number < c ? bins[slot] : 0;
      if (many) add(&query.histogram[(first_row + row) * (query.c + 1) + first_key + number + 1], many);
    });
  }

 private:
  __device__ const int64_t* keys(int row) const { return query.keys + (first_row + row) * query.c + first_key; }
  __device__ int slot_of(int row, int number) const {
    return row * pitch_of(levels) + static_cast<int>(__brev(number) >> (32 - levels));
  }

  // Calls take(row, number of a threshold, its slot), each in one thread of the block.
  template <class Take>
  __device__ void for_each_slot(Take take) const {
    BDKERNELS_NO_UNROLL
    for (int i = threadIdx.x; i < Tile::kUsers << levels; i += kTileThreads) {
      const int row = i >> levels, number = i & ((1 << levels) - 1);
      take(row, number, slot_of(row, number));
    }
  }

  // Items past the last come before no threshold.
  template <int kUsers, int kItems>
  __device__ static void leave_out(float (&scores)[kUsers][kItems], int items) {
    BDKERNELS_UNROLL
    for (int j = 0; j < kItems; ++j) {
      if (Tile::item_of(j) < items) continue;
      BDKERNELS_UNROLL
      for (int i = 0; i < kUsers; ++i) scores[i][j] = -INFINITY;
    }
  }

  __device__ static void step(float threshold, float score, uint32_t by, uint32_t& at, float& below) {
    if (threshold <= score) {
      at += by;
      below = threshold;
    }
  }

  // Also of a score that is NaN.
  __device__ static bool equals(float threshold, float score) { return !(threshold < score) && !(threshold > score); }

  // Scores that equal a threshold, and those that are NaN. What is of no user or no item is among them: it equals INFINITY,
  // or is -INFINITY.
  template <int kUsers, int kItems>
  __device__ void count_equal(const float (&scores)[kUsers][kItems], const float (&below)[kUsers][kItems], int64_t item0,
                              int items) const {
    uint32_t left = 0;  // a bit for each of them
    BDKERNELS_UNROLL
    for (int i = 0; i < kUsers; ++i) {
      BDKERNELS_UNROLL
      for (int j = 0; j < kItems; ++j) {
        const bool there = Tile::user_of(i) < rows && Tile::item_of(j) < items;
        if (there && equals(below[i][j], scores[i][j])) left |= 1u << (i * kItems + j);
      }
    }
    BDKERNELS_NO_UNROLL
    for (; left; left &= left - 1) {
      const uint32_t one = left & ~(left - 1);
      int row = 0, item = 0;
      float score = 0.0f;
      BDKERNELS_UNROLL
      for (int i = 0; i < kUsers; ++i) {
        BDKERNELS_UNROLL
        for (int j = 0; j < kItems; ++j) {
          if (one == 1u << (i * kItems + j)) row = Tile::user_of(i), item = Tile::item_of(j), score = scores[i][j];
        }
      }
      count_key(row, item0 + item, score);
    }
  }

  // By id, if the score is a number.
  __device__ void count_key(int row, int64_t item, float score) const {
    if (score != score) {
      report_nan(query.nan_at, (first_row + row) * n + item);
      return;
    }
    const int bin = position(keys(row), looked, signed_key(score, item + query.item_offset));
    if (bin > 0) atomicAdd(&bins[slot_of(row, bin - 1)], 1u);
  }
};

}  // namespace bdkernels::cuda
