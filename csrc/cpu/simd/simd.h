// The inner loops that depend on the instruction set, behind one table of functions, chosen once at run time.
#pragma once
#include <cstdint>

#include "../../core/rule.h"
#include "../../core/score.h"

namespace bdkernels::cpu {

// A threshold as the tile needs it in which ties with it change from won to lost.
struct Tie {
  int32_t ahead;  // how many items of the table win
  float at;
  int32_t slot, j;
};

// One user's thresholds from worst to best (by score, and by falling tie id where scores are equal), and how many items lie
// between them so far. An item comes before threshold j if its score is greater, or equal with an index below ahead[j].
struct Thresholds {
  int64_t c;
  const float* at;       // [c]
  const int32_t* ahead;  // [c] how many items of the table win a tie
  // For one tile: threshold j, or the next float below as long as all of its items win a tie, at slot[j], so that `greater`
  // alone decides. What that gets wrong, in the tile where it changes, is put right. Infinity in the slots of no threshold.
  float* now;
  const int32_t* slot;
  const Tie* ties;  // [c] by rising `ahead`
  int64_t settled;  // so many of these have changed: tiles come in the order of their items
  // Items by how many thresholds they come before, j of them at place[j] of any of histograms(c), each of `width`.
  int32_t* hist;
  int64_t width;
  const int32_t* place;
  // Up to Simd::by_levels thresholds are found by a binary search in `levels` steps. The answers of the first k, lowest bit
  // first, are a number p, and step k compares slot 2^k + p: a permute of a level. So places are numbers with their bits
  // reversed; slot 0 is the best of 2^levels thresholds, compared last. Without levels, slots and places are in order.
  int levels;
  // Uniform bins over the scores, bin(s) = clamp((s - low) * scale, 0, bins - 1) truncated, which is monotone:
  // table[bin(s)] thresholds are in lower bins, so below s for sure; kMore says that the bin may hold two or more.
  const uint16_t* table;
  float low, scale;
  int32_t bins;
  bool lowest;  // a threshold is -infinity: no float is below it, so every item is searched by `find`

  static constexpr uint16_t kMore = 0x8000;
  static constexpr int64_t kFew = 4;  // up to this many are counted one by one, without a search
  static constexpr int64_t kBinsEach = 16;
  static constexpr int64_t kMaxBins = 4096;  // 8 KB a user, in L1 while one of his tiles is searched

  // So many that runs of equal places do not wait for each other; among many thresholds they are short.
  static int64_t histograms(int64_t c) { return c <= 64 ? 4 : 2; }

  int32_t bin(float s) const {
    const float x = (s - low) * scale;
    return x > 0 ? (x < static_cast<float>(bins - 1) ? static_cast<int32_t>(x) : bins - 1) : 0;
  }

  // The place of an item with this score and index.
  int32_t find(float s, int64_t item) const {
    int64_t lo = 0, hi = c;
    while (lo < hi) {
      const int64_t mid = (lo + hi) / 2;
      if (at[mid] < s || (at[mid] == s && item < ahead[mid])) {
        lo = mid + 1;
      } else {
        hi = mid;
      }
    }
    return place[lo];
  }

  // `count` more items (or fewer) before threshold j alone.
  void add(int64_t j, int32_t count) const {
    hist[place[j + 1]] += count;
    hist[place[j]] -= count;
  }
};

struct Exps {
  float top, sum;
};

struct Simd {
  const char* name;
  int64_t lanes;      // items of a panel
  int64_t by_levels;  // up to this many thresholds are searched level by level, without a table

  // Items [item0, item0 + n) as panels: panel p holds d rows of `lanes` floats, one for each item; zeros past the end.
  void (*pack)(const Items& items, int64_t item0, int64_t n, float* panels, float* bias);
  // Scores of n packed items for `rows` users whose rows are d apart -> out, rows `out_stride` apart (a multiple of lanes).
  void (*score)(const float* users, int64_t rows, const float* panels, const float* bias, int64_t n, int64_t d, float* out,
                int64_t out_stride);
  // One score: the same bits as `score` gives.
  void (*dot)(const float* user, const Items& items, const int64_t* ids, int64_t n, float* out);
  // Counts n items, `first` and on, into t.hist. Returns the first NaN among their scores, or -1. Room for n in `scratch`.
  int64_t (*count)(const float* scores, int64_t first, int64_t n, Thresholds& t, int32_t* scratch);
  // Where the scores that are not at most `bar` are -> out, which has room for n; returns how many. A NaN is always one of
  // them, and if the bar is NaN all are.
  int64_t (*select)(const float* scores, int64_t n, float bar, int32_t* out);
  // Scores of items [item0, item0 + n) for one user, straight from the table: packing pays for many users only. The same
  // bits as `score` gives -> out, which has room for a multiple of lanes.
  void (*score_one)(const float* user, const Items& items, int64_t item0, int64_t n, float* out);
  // Products of one user with n rows of d numbers: vectorised, so in another order than `dot`.
  void (*dots)(const float* user, const float* const* rows, int64_t n, int64_t d, float* out);
  // out += the sum of weights[j] * rows[j], in the order of j.
  void (*add_rows)(const float* const* rows, const float* weights, int64_t n, int64_t d, float* out);
  // exp((x[i] - top) / tau) -> out, where top is the largest x; returns it and the sum. What is below exp(-87) is 0. NaN
  // gives NaN, in the sum too.
  Exps (*exps)(const float* x, int64_t n, float tau, float* out);
  // The rule on one row and what the optimizer keeps of it (null where the rule has no such state).
  void (*update)(const Rule& rule, const float* grad, int64_t d, float* row, float* first, float* second);
  // Philox of n indices from `index` on: word w of the ith -> out[w * n + i].
  void (*random)(uint64_t seed, uint32_t index, uint32_t stream, uint64_t row_key, uint32_t step, int64_t n, uint32_t* out);
};

const Simd& portable_simd();
const Simd& avx2_simd();
const Simd& avx512_simd();

// The best that this CPU has, or the one that the environment variable BDKERNELS_ISA names (avx512, avx2, portable).
// Throws std::runtime_error where that one cannot be had.
const Simd& simd();

}  // namespace bdkernels::cpu
