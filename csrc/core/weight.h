// Log-weights of the sampler, and the acceptance of a proposal (design: sections 1 and 2).
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

#include "host_device.h"

namespace bdkernels {

// The order of bdkernels.weights.KINDS.
enum class Kind : int64_t { kTanh = 0, kExp = 1, kLinear = 2, kUniform = 3, kRankOnly = 4 };

struct Weight {
  Kind kind;
  double parameter;
  bool flipped;  // side="under": the gap changes its sign
};

// Log of the unnormalised weight. delta = rank_guide - rank_learner, flipped already; n candidates.
BDKERNELS_HD inline double log_weight(const Weight& w, int64_t delta, int64_t n, int64_t rank_guide) {
  const double gap = static_cast<double>(delta) / static_cast<double>(n);
  const double positive = gap > 0 ? gap : 0;
  switch (w.kind) {
    case Kind::kTanh:
      return std::log(std::tanh(w.parameter * positive));
    case Kind::kExp:
      return w.parameter * gap;
    case Kind::kLinear:
      return std::log(positive);
    case Kind::kRankOnly:
      return -static_cast<double>(rank_guide - 1) / w.parameter;  // 0 at the best, however small the parameter
    case Kind::kUniform:
      break;
  }
  return 0.0;
}

// The log-weight at the largest gap among n candidates and at the guide's best rank.
BDKERNELS_HD inline double max_log_weight(const Weight& w, int64_t n) { return log_weight(w, n - 1, n, 1); }

// Accept with probability weight / max weight. Where there is no weight at all the difference is NaN: not accepted.
BDKERNELS_HD inline bool accepts(const Weight& w, double log_max, int64_t rank_guide, int64_t rank_learner, int64_t n,
                                 double u) {
  const int64_t delta = w.flipped ? rank_learner - rank_guide : rank_guide - rank_learner;
  return std::log(u) < log_weight(w, delta, n, rank_guide) - log_max;
}

}  // namespace bdkernels
