// One learner's training step: what it reads and trains, and the functions of its losses.
#pragma once
#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace bdkernels {

// float32 rows, `stride` numbers apart.
struct Rows {
  const float* data;
  int64_t n, d, stride;

  BDKERNELS_HD const float* row(int64_t id) const { return data + id * stride; }
};

// A table in training: its rows, and what the optimizer keeps of them, [n, d] each or null.
struct Trained {
  float* data;
  int64_t n, d, stride;
  float *first, *second;
};

struct Batch {
  const int64_t *users, *positives, *negatives, *distilled;  // [b], [b], [b, m], [b, k]
  const float* guide;                                        // [b, k]
  const bool* mask;                                          // [b, k], or null: all count
  int64_t b, m, k;

  BDKERNELS_HD int64_t width() const { return 1 + m + k; }
  BDKERNELS_HD bool live(int64_t row, int64_t j) const { return mask == nullptr || mask[row * k + j]; }
  // Item c of a row: positive, negatives, distilled. The positive stands in for what is masked, with slope 0: it is
  // touched anyway.
  BDKERNELS_HD int64_t item(int64_t row, int64_t c) const {
    if (c == 0) return positives[row];
    if (c <= m) return negatives[row * m + c - 1];
    return live(row, c - 1 - m) ? distilled[row * k + c - 1 - m] : positives[row];
  }
};

// In the order of FUSED_LOSSES and DISTILL_LOSSES in bdkernels/ranges.py. The formulas: bdkernels/backends/reference.py.
enum class CfLoss : int64_t { kBce, kBpr, kSoftmax };
enum class DistillLoss : int64_t { kBce, kListwise };

struct Objective {
  CfLoss cf;
  DistillLoss distill;
  double lambda, tau_learner, tau_guide;
  double count;  // of what the distillation loss is the mean, at least 1: entries that are live, or rows
};

struct Logistic {
  float sigmoid, softplus;
};

// Both from one exponential that cannot overflow; NaN gives NaN.
BDKERNELS_HD inline Logistic logistic(float x) {
  const float e = std::exp(-std::fabs(x)), log = std::log1p(e);
  return x >= 0 ? Logistic{1 / (1 + e), x + log} : Logistic{e / (1 + e), log};
}

BDKERNELS_HD inline float sigmoid(float x) {
  const float e = std::exp(-std::fabs(x));
  return (x >= 0 ? 1 : e) / (1 + e);
}

}  // namespace bdkernels
