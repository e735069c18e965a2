// The inner loops that depend on the instruction set, behind one table of functions, chosen once at run time.
#pragma once
#include <cstdint>

#include "../../core/rule.h"
#include "../../core/score.h"

namespace bdkernels::cpu {

// Thresholds up to this many are compared one by one in registers; more are searched.
inline constexpr int64_t kFewThresholds = 4;

// One user's thresholds, from worst to best: by score, and by falling tie id where scores are equal.
struct Thresholds {
  const float* sorted;  // [c + 1], the last one NaN: nothing compares with it
  const int64_t* ties;  // [c]
  int64_t c;
  // Uniform bins over the scores: table[f(s)] is how many thresholds t have f(t) < f(s), where
  // f(s) = clamp((s - low) * scale, 0, bins - 1) truncated. f is monotone, so all of those are below s: an exact lower
  // bound.
  const uint16_t* table;
  float low, scale;
  int32_t bins;

  int32_t f(float s) const {
    const float x = (s - low) * scale;
    return x > 0 ? (x < static_cast<float>(bins - 1) ? static_cast<int32_t>(x) : bins - 1) : 0;
  }

  // How many thresholds an item with this score and id comes before, given a lower bound.
  int64_t find(float s, int64_t id, int64_t least) const {
    int64_t lo = least, hi = c;
    while (lo < hi) {
      const int64_t mid = (lo + hi) / 2;
      if (sorted[mid] < s || (sorted[mid] == s && id < ties[mid])) {
        lo = mid + 1;
      } else {
        hi = mid;
      }
    }
    return lo;
  }
};

struct Simd {
  const char* name;
  int64_t lanes;  // items of a panel

  // Items [item0, item0 + n) as panels: panel p holds d rows of `lanes` floats, one for each item; zeros past the end.
  void (*pack)(const Items& items, int64_t item0, int64_t n, float* panels, float* bias);
  // Scores of n packed items for `rows` users whose rows are d apart -> out, rows `out_stride` apart (a multiple of lanes).
  void (*score)(const float* users, int64_t rows, const float* panels, const float* bias, int64_t n, int64_t d, float* out,
                int64_t out_stride);
  // One score: the same bits as `score` gives.
  void (*dot)(const float* user, const Items& items, const int64_t* ids, int64_t n, float* out);
  // counts[j] += how many of n scores come before threshold j, where item i has id first_id + i. For few thresholds.
  // Returns the first NaN among the scores, or -1.
  int64_t (*count_few)(const float* scores, int64_t n, const Thresholds& t, int64_t first_id, int64_t* counts);
  // The same as a histogram: ++hist[(i % 4) * (c + 1) + how many thresholds item i comes before]. Four histograms, so that
  // runs of the same bin do not wait for each other. `scratch` has room for n integers.
  int64_t (*count_many)(const float* scores, int64_t n, const Thresholds& t, int64_t first_id, int32_t* hist,
                        int32_t* scratch);

  // Products of one user with n rows of d numbers: vectorised, so in another order than `dot`.
  void (*dots)(const float* user, const float* const* rows, int64_t n, int64_t d, float* out);
  // out += the sum of weights[j] * rows[j], in the order of j.
  void (*add_rows)(const float* const* rows, const float* weights, int64_t n, int64_t d, float* out);
  // The rule on one row and what the optimizer keeps of it (null where the rule has no such state).
  void (*update)(const Rule& rule, const float* grad, int64_t d, float* row, float* first, float* second);
};

const Simd& portable_simd();
const Simd& avx2_simd();
const Simd& avx512_simd();

// The best that this CPU has, or the one that the environment variable BDKERNELS_ISA names (avx512, avx2, portable).
// Throws std::runtime_error where that one cannot be had.
const Simd& simd();

}  // namespace bdkernels::cpu
