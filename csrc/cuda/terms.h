// The losses of a row of the batch: a warp turns its scores, which lie in `slopes`, into slopes, in place. Sums have one
// order.
#pragma once
#include <limits>

#include "../core/step.h"
#include "device.h"

namespace bdkernels::cuda {

constexpr float kNone = -std::numeric_limits<float>::infinity();  // a score that has no share

// Softmax of a list by a warp: the share of a score x is exp((x - top) / tau) / sum. Nothing overflows.
struct Shares {
  float tau, top, sum, log;  // of the sum

  __device__ float weight(float x) const { return std::exp((x - top) / tau); }
  __device__ float share(float x) const { return weight(x) / sum; }
  __device__ float log_share(float x) const { return (x - top) / tau - log; }
};

// Of score_of(j), j < n, where minus infinity has no share. NaN that it gives is in the sum.
template <class ScoreOf>
__device__ Shares shares_of(int64_t n, float tau, ScoreOf score_of) {
  const int lane = threadIdx.x % kWarp;
  Shares of{tau, kNone, 0, 0};
  for (int64_t j = lane; j < n; j += kWarp) of.top = std::fmax(of.top, score_of(j));
  of.top = warp_max(of.top);
  for (int64_t j = lane; j < n; j += kWarp) of.sum += of.weight(score_of(j));
  of.sum = warp_sum(of.sum);
  of.log = std::log(of.sum);
  return of;
}

// log(1 + sum of exp(s_j - s_0)): softplus of the difference between the log of the sum over the negatives and s_0. Scores
// become slopes; returns the loss, in every lane.
__device__ inline double softmax_terms(const Batch& batch, float* slopes) {
  const int lane = threadIdx.x % kWarp;
  const float n = static_cast<float>(batch.b), positive = slopes[0];
  const Shares shares = shares_of(batch.m, 1.0f, [&](int64_t j) { return slopes[1 + j]; });
  const Logistic pull = logistic(shares.top - positive + shares.log);
  const float each = pull.sigmoid / n / shares.sum;
  for (int64_t j = 1 + lane; j <= batch.m; j += kWarp) slopes[j] = each * shares.weight(slopes[j]);
  __syncwarp();  // no lane reads the positive's score again
  if (lane == 0) slopes[0] = -pull.sigmoid / n;
  return pull.softplus;
}

// The same for losses that are sums over the scores of a row.
__device__ inline double cf_terms(const Batch& batch, bool bpr, float* slopes) {
  const int lane = threadIdx.x % kWarp;
  const float n = static_cast<float>(batch.b), positive = slopes[0];
  double sum = 0;
  float pushes = 0;
  for (int64_t j = 1 + lane; j <= batch.m; j += kWarp) {
    const Logistic of = logistic(bpr ? slopes[j] - positive : slopes[j]);
    slopes[j] = of.sigmoid / n;
    pushes += slopes[j];
    sum += of.softplus;
  }
  pushes = warp_sum(pushes);
  sum = warp_sum(sum);
  __syncwarp();  // every lane has read the positive's score
  const Logistic pull = logistic(-positive);
  if (lane == 0) slopes[0] = bpr ? -pushes : -pull.sigmoid / n;
  return bpr ? sum : sum + pull.softplus;
}

// The same for the distillation loss of shares; `slopes` begin at the first distilled item.
__device__ inline double listwise_terms(const Batch& batch, const Objective& objective, int64_t row, float* slopes) {
  const auto learner_of = [&](int64_t j) { return batch.live(row, j) ? slopes[j] : kNone; };
  const auto guide_of = [&](int64_t j) { return batch.live(row, j) ? batch.guide[row * batch.k + j] : kNone; };
  const Shares learner = shares_of(batch.k, static_cast<float>(objective.tau_learner), learner_of);
  const Shares guide = shares_of(batch.k, static_cast<float>(objective.tau_guide), guide_of);
  const auto scale = static_cast<float>(objective.lambda / (objective.tau_learner * objective.count));
  double sum = 0;
  for (int64_t j = threadIdx.x % kWarp; j < batch.k; j += kWarp) {
    const float x = slopes[j], g = guide_of(j), share = guide.share(g);
    const bool live = batch.live(row, j);
    slopes[j] = live ? scale * (learner.share(x) - share) : 0.0f;
    // A share of 0 weighs nothing, also where an infinity stands beside it; NaN goes on.
    if (live && share != 0) sum += share * (guide.log_share(g) - learner.log_share(x));
  }
  return warp_sum(sum);
}

// The same for that of each score alone.
__device__ inline double distill_terms(const Batch& batch, const Objective& objective, int64_t row, float* slopes) {
  const int lane = threadIdx.x % kWarp;
  const auto tau_learner = static_cast<float>(objective.tau_learner), tau_guide = static_cast<float>(objective.tau_guide);
  const auto scale = static_cast<float>(objective.lambda / (objective.tau_learner * objective.count));
  double sum = 0;
  for (int64_t j = lane; j < batch.k; j += kWarp) {
    const float x = slopes[j] / tau_learner;
    slopes[j] = 0;
    if (!batch.live(row, j)) continue;
    const float target = sigmoid(batch.guide[row * batch.k + j] / tau_guide);
    const Logistic of = logistic(x);
    slopes[j] = scale * (of.sigmoid - target);
    sum += of.softplus - x * target;
  }
  return warp_sum(sum);
}

}  // namespace bdkernels::cuda
