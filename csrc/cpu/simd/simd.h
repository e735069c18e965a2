// The inner loops that depend on the instruction set, behind one table of functions, chosen once at run time.
#pragma once
#include <cstdint>

#include "../../core/score.h"

namespace bdkernels::cpu {

// Thresholds up to this many are compared one by one in registers; more are searched.
inline constexpr int64_t kFewThresholds = 4;

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
  // counts[c] += how many of n scores come before threshold c, where item i has id first_id + i. Returns the first NaN or -1.
  int64_t (*count_few)(const float* scores, int64_t n, const float* thresholds, const int64_t* tie_ids, int64_t c,
                       int64_t first_id, int64_t* counts);
};

const Simd& portable_simd();
const Simd& avx2_simd();
const Simd& avx512_simd();

// The best that this CPU has, or the one that the environment variable BDKERNELS_ISA names (avx512, avx2, portable).
// Throws std::runtime_error where that one cannot be had.
const Simd& simd();

}  // namespace bdkernels::cpu
