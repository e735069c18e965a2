// loss: one learner's step in two passes. The first gathers the rows of each user, scores, and turns scores into losses and
// slopes; nothing else is needed for the gradient, since that of an item row is a slope times a user row. The second, where
// an optimizer is fused, visits each touched row once, in the order of ids. Both ask for rows ahead: the tables are far
// larger than any cache, and waiting for them is most of the time.
#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels.h"

namespace bdkernels::cpu {
namespace {

void prefetch(const float* row, int64_t d) {
  for (int64_t k = 0; k < d; k += 16) __builtin_prefetch(row + k, 1);
}

// log(1 + sum of exp(s_j - s_0)): softplus of the difference between the log of the sum over the negatives and s_0.
double softmax_terms(const float* scores, const Batch& batch, float* slopes) {
  const float n = static_cast<float>(batch.b);
  const auto [top, sum] = simd().exps(scores + 1, batch.m, 1, slopes + 1);
  const auto [pull, loss] = logistic(top - scores[0] + std::log(sum));
  const float each = pull / n / sum;
  slopes[0] = -pull / n;
  for (int64_t j = 1; j <= batch.m; ++j) slopes[j] *= each;
  return loss;
}

double cf_terms(const float* scores, const Batch& batch, CfLoss kind, float* slopes) {
  if (kind == CfLoss::kSoftmax) return softmax_terms(scores, batch, slopes);
  const bool bpr = kind == CfLoss::kBpr;
  const float n = static_cast<float>(batch.b);
  double sum = 0;
  slopes[0] = 0;
  if (!bpr) {
    const auto [pull, loss] = logistic(-scores[0]);
    slopes[0] = -pull / n;
    sum = loss;
  }
  for (int64_t j = 1; j <= batch.m; ++j) {
    const auto [push, loss] = logistic(bpr ? scores[j] - scores[0] : scores[j]);
    slopes[j] = push / n;
    if (bpr) slopes[0] -= slopes[j];
    sum += loss;
  }
  return sum;
}

// 0, or NaN where a score is not finite: a loss may be finite then, though the gradient is not.
float none_or_nan(const std::vector<float>& scores) {
  float sum = 0;
  for (const float s : scores) sum += s - s;
  return sum;
}

// KL of the guide's shares and the learner's among the live items of a row; 0 where there are none. `scratch` [3 k].
double listwise_terms(const float* scores, const Batch& batch, const Objective& objective, int64_t row, float* slopes,
                      float* scratch) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  const auto tau_learner = static_cast<float>(objective.tau_learner), tau_guide = static_cast<float>(objective.tau_guide);
  const auto scale = static_cast<float>(objective.lambda / (objective.tau_learner * objective.count));
  float *learner = scratch, *guide = learner + batch.k, *shares = guide + batch.k;
  bool any = false;
  for (int64_t j = 0; j < batch.k; ++j) {
    const bool live = batch.live(row, j);
    any |= live;
    learner[j] = live ? scores[j] : kNone;
    guide[j] = live ? batch.guide[row * batch.k + j] : kNone;
  }
  std::fill_n(slopes, batch.k, 0.0f);
  if (!any) return 0;
  const Exps own = simd().exps(learner, batch.k, tau_learner, slopes),
             target = simd().exps(guide, batch.k, tau_guide, shares);
  const float log_own = std::log(own.sum), log_target = std::log(target.sum);
  double sum = 0;
  for (int64_t j = 0; j < batch.k; ++j) {
    const float share = shares[j] / target.sum;
    slopes[j] = scale * (slopes[j] / own.sum - share);
    if (share == 0) continue;  // also where an infinity stands beside it; NaN goes on
    const float log_p = (guide[j] - target.top) / tau_guide - log_target;
    const float log_q = (learner[j] - own.top) / tau_learner - log_own;
    sum += share * (log_p - log_q);
  }
  return sum;
}

double bce_terms(const float* scores, const Batch& batch, const Objective& objective, int64_t row, float* slopes) {
  const auto tau_learner = static_cast<float>(objective.tau_learner), tau_guide = static_cast<float>(objective.tau_guide);
  const auto scale = static_cast<float>(objective.lambda / (objective.tau_learner * objective.count));
  double sum = 0;
  for (int64_t j = 0; j < batch.k; ++j) {
    slopes[j] = 0;
    if (!batch.live(row, j)) continue;
    const float x = scores[j] / tau_learner, target = sigmoid(batch.guide[row * batch.k + j] / tau_guide);
    const auto [chance, loss] = logistic(x);
    slopes[j] = scale * (chance - target);
    sum += loss - x * target;
  }
  return sum;
}

// Counting sort by 11 bits of the id at a time: stable, so equal ids stay in the order of `at`.
void sort_by_bits(const std::vector<Touch>& from, std::vector<Touch>& to, int shift) {
  constexpr int64_t kBins = 1 << 11;
  std::vector<int64_t> next(kBins + 1);
  for (const Touch& t : from) ++next[((t.id >> shift) & (kBins - 1)) + 1];
  for (int64_t i = 0; i < kBins; ++i) next[i + 1] += next[i];
  for (const Touch& t : from) to[next[(t.id >> shift) & (kBins - 1)]++] = t;
}

// `of(at)` is the row that place `at` of the batch adds to its gradient, and its weight.
template <class Of>
void update_rows(const Trained& rows, const Rule& rule, const std::vector<Touch>& touches, int64_t first, int64_t last,
                 Of of) {
  constexpr int64_t kTogether = 32, kAhead = 8;
  const Simd& isa = simd();
  const int64_t d = rows.d;
  const auto n = static_cast<int64_t>(touches.size());
  const float* parts[kTogether];
  float weights[kTogether];
  std::vector<float> grad(d);
  int64_t i = first;
  while (i > 0 && i < last && touches[i].id == touches[i - 1].id) ++i;
  while (i < last) {
    const int64_t id = touches[i].id, ahead = touches[std::min(i + kAhead, n - 1)].id;
    prefetch(rows.data + ahead * rows.stride, d);
    if (rows.first) prefetch(rows.first + ahead * d, d);
    if (rows.second) prefetch(rows.second + ahead * d, d);
    std::fill(grad.begin(), grad.end(), 0.0f);
    while (i < n && touches[i].id == id) {
      int64_t together = 0;
      for (; together < kTogether && i < n && touches[i].id == id; ++i, ++together) {
        std::tie(parts[together], weights[together]) = of(touches[i].at);
      }
      isa.add_rows(parts, weights, together, d, grad.data());
    }
    isa.update(rule, grad.data(), d, rows.data + id * rows.stride, rows.first ? rows.first + id * d : nullptr,
               rows.second ? rows.second + id * d : nullptr);
  }
}

}  // namespace

void step_rows(const Rows& users, const Rows& items, const float* bias, const Batch& batch, const Objective& objective,
               int64_t row0, int64_t row1, const RowLosses& out) {
  const Simd& isa = simd();
  const int64_t width = batch.width(), d = items.d;
  std::vector<const float*> rows(width);
  std::vector<float> scores(width), scratch(objective.distill == DistillLoss::kListwise ? 3 * batch.k : 0);
  for (int64_t row = row0; row < row1; ++row) {
    if (row + 1 < row1) {
      prefetch(users.row(batch.users[row + 1]), d);
      for (int64_t c = 0; c < width; ++c) {
        prefetch(items.row(batch.item(row + 1, c)), d);
        if (bias != nullptr) prefetch(bias + batch.item(row + 1, c), 1);
      }
    }
    for (int64_t c = 0; c < width; ++c) rows[c] = items.row(batch.item(row, c));
    isa.dots(users.row(batch.users[row]), rows.data(), width, d, scores.data());
    if (bias != nullptr) {
      for (int64_t c = 0; c < width; ++c) scores[c] += bias[batch.item(row, c)];
    }
    float* slopes = out.slopes + row * width;
    out.cf[row] = cf_terms(scores.data(), batch, objective.cf, slopes) + none_or_nan(scores);
    const float* distilled = scores.data() + 1 + batch.m;
    out.distill[row] = objective.distill == DistillLoss::kListwise
                           ? listwise_terms(distilled, batch, objective, row, slopes + 1 + batch.m, scratch.data())
                           : bce_terms(distilled, batch, objective, row, slopes + 1 + batch.m);
    float* user_grad = out.user_grad + row * d;
    std::fill_n(user_grad, d, 0.0f);
    isa.add_rows(rows.data(), slopes, width, d, user_grad);
  }
}

void item_grads(const Rows& users, const Batch& batch, const float* slopes, int64_t row0, int64_t row1, float* out) {
  const Simd& isa = simd();
  const int64_t width = batch.width(), d = users.d;
  for (int64_t row = row0; row < row1; ++row) {
    const float* user = users.row(batch.users[row]);
    std::fill_n(out + row * width * d, width * d, 0.0f);
    for (int64_t at = row * width; at < (row + 1) * width; ++at) isa.add_rows(&user, slopes + at, 1, d, out + at * d);
  }
}

std::vector<int64_t> listed_items(const Batch& batch) {
  std::vector<int64_t> ids(batch.b * batch.width());
  for (int64_t row = 0, at = 0; row < batch.b; ++row) {
    for (int64_t c = 0; c < batch.width(); ++c) ids[at++] = batch.item(row, c);
  }
  return ids;
}

std::vector<Touch> sort_touches(const int64_t* ids, int64_t n, int64_t limit) {
  std::vector<Touch> touches(n), other(n);
  for (int64_t i = 0; i < n; ++i) touches[i] = {ids[i], i};
  for (int shift = 0; limit >> shift > 0; shift += 11) {
    sort_by_bits(touches, other, shift);
    touches.swap(other);
  }
  return touches;
}

void update_items(const Trained& items, const Rows& users, const Batch& batch, const float* slopes, const Rule& rule,
                  const std::vector<Touch>& touches, int64_t first, int64_t last) {
  const int64_t width = batch.width();
  update_rows(items, rule, touches, first, last,
              [&](int64_t at) { return std::pair<const float*, float>(users.row(batch.users[at / width]), slopes[at]); });
}

void update_own(const Trained& rows, const float* grads, const Rule& rule, const std::vector<Touch>& touches, int64_t first,
                int64_t last) {
  const int64_t d = rows.d;
  update_rows(rows, rule, touches, first, last,
              [=](int64_t at) { return std::pair<const float*, float>(grads + at * d, 1.0f); });
}

}  // namespace bdkernels::cpu
