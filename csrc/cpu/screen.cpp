// Which proposals of a round need an exact rank. A proposal is accepted if its gap is above a limit that its random number
// sets, so most decisions are clear from a rank that is known roughly. Ranks guessed among the pilot's items tell which ones
// are close; those are counted exactly, and some more at even distances. All others lie between two counted ones, which
// bounds their ranks: the decision must be the same at both ends. A user with one that is not is counted in full. So every
// decision is the exact one; the guesses only choose what is counted.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "../core/order.h"
#include "../core/philox.h"
#include "sampler.h"

namespace bdkernels::cpu {
namespace {

constexpr int64_t kPivots = 16;     // counted at even distances, of each model
constexpr double kSure = 0.06;      // of the gap: further than guesses are off, nearly always
constexpr double kRounding = 1e-9;  // of the gap: this close to its limit the weights themselves are compared
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// What the weight rises with, from -1 to 1: the gap, or the guide's rank alone.
double value(const Weight& w, double guide, double learner, double n) {
  if (w.kind == Kind::kRankOnly) return -guide / n;
  return (w.flipped ? learner - guide : guide - learner) / n;
}

// The value above which a proposal with random number u is accepted: the inverse of `accepts` (core/weight.h).
double limit_of(const Weight& w, double u, double n) {
  const double most = (n - 1) / n;
  switch (w.kind) {
    case Kind::kTanh:
      return std::atanh(u * std::tanh(w.parameter * most)) / w.parameter;
    case Kind::kExp:
      return most + std::log(u) / w.parameter;
    case Kind::kLinear:
      return u * most;
    case Kind::kRankOnly:
      return (w.parameter * std::log(u) - 1) / n;
    case Kind::kUniform:
      break;
  }
  return -kInfinity;
}

// Counted proposals of one user and model, by falling order, to bound the ranks of the others.
class Bounds {
 public:
  Bounds(const float* scores, const int64_t* ids, const int64_t* above, int64_t n) {
    for (int64_t i = 0; i < kExact; ++i) sorted_[i] = {~order_key(scores[i], ids[i]), above[i]};
    std::sort(sorted_.begin(), sorted_.end());
    last_ = n - 1;
  }

  // Least and most items that come before this one.
  std::pair<int64_t, int64_t> of(float score, int64_t id) const {
    const uint64_t key = ~order_key(score, id);
    const auto next = std::lower_bound(sorted_.begin(), sorted_.end(), std::pair{key, int64_t{-1}});
    if (next != sorted_.end() && next->first == key) return {next->second, next->second};
    return {next == sorted_.begin() ? 0 : std::prev(next)->second + 1, next == sorted_.end() ? last_ : next->second - 1};
  }

 private:
  static constexpr int64_t kExact = 64;
  std::array<std::pair<uint64_t, int64_t>, kExact> sorted_;
  int64_t last_;
};

}  // namespace

Sampler::Nan Sampler::screened(Round& round, const Pilot& pilot, std::vector<int64_t>* undecided) const {
  propose(round);
  pilot.guess(*this, round);
  for (int i = 0; i < 2; ++i) {
    round.chosen_scores[i].resize(round.size * Round::kExact);
    round.chosen_ids[i].resize(round.size * Round::kExact);
    round.limit[i].resize(round.size * round.c);
  }
  parallel(round.size, 4, [&](int64_t a, int64_t b) {
    for (int64_t r = a; r < b; ++r) choose(round, r);
  });
  const Nan nan = count(round, Round::kExact, round.chosen_scores, round.chosen_ids, round.chosen_above);
  if (nan.model >= 0) return nan;
  std::vector<char> decided(round.size);
  parallel(round.size, 4, [&](int64_t a, int64_t b) {
    for (int64_t r = a; r < b; ++r) decided[r] = decide(round, r);
  });
  for (int64_t r = 0; r < round.size; ++r) {
    if (!decided[r]) undecided->push_back(round.rows[r]);
  }
  return {-1, 0, 0};
}

// Sets the limits of one row, and chooses what is counted of it.
void Sampler::choose(Round& round, int64_t r) const {
  const int64_t c = round.c, row = round.rows[r], candidates = unseen(row);
  const double n = static_cast<double>(candidates);
  std::vector<std::pair<double, int32_t>> close(c);  // how far the guess is from the limit, where that matters
  for (int64_t j = 0; j < c; ++j) close[j] = {kInfinity, static_cast<int32_t>(j)};
  for (int to_teacher = 0; to_teacher < 2; ++to_teacher) {
    double* limit = round.limit[to_teacher].data() + r * c;
    std::fill_n(limit, c, std::numeric_limits<double>::quiet_NaN());
    if (!open(to_teacher, row, round.start)) continue;
    const Direction& d = directions[to_teacher];
    const int64_t *guide = round.above[to_teacher].data() + r * c, *learner = round.above[1 - to_teacher].data() + r * c;
    int64_t sure = d.hits[row];
    for (int64_t j = 0; j < c && sure < k; ++j) {  // what comes after k sure hits does not matter
      const Words w =
          philox(seed, static_cast<uint32_t>(round.start + j), kAccept, static_cast<uint32_t>(round.user_ids[r]), step);
      limit[j] = limit_of(d.weight, to_teacher ? uniform(w.w[2], w.w[3]) : uniform(w.w[0], w.w[1]), n);
      const double over = value(d.weight, static_cast<double>(guide[j]), static_cast<double>(learner[j]), n) - limit[j];
      sure += over > kSure;
      close[j].first = std::min(close[j].first, std::abs(over));
    }
  }
  constexpr int64_t kClose = Round::kExact - kPivots;
  std::nth_element(close.begin(), close.begin() + kClose, close.end());
  for (int m = 0; m < 2; ++m) {
    const int64_t at = r * Round::kExact;
    const int64_t* above = round.above[m].data() + r * c;
    std::array<int32_t, kPivots> pivots;
    pivots.fill(-1);
    for (int64_t j = kClose; j < c; ++j) {
      const int32_t column = close[j].second;
      const int64_t place = above[column] * kPivots / models[m].items.n;
      pivots[std::min(place, kPivots - 1)] = column;
    }
    for (int64_t i = 0; i < Round::kExact; ++i) {
      int32_t column = close[i].second;  // beyond the close ones, any other where a pivot is missing
      if (i >= kClose && pivots[i - kClose] >= 0) column = pivots[i - kClose];
      round.chosen_scores[m][at + i] = round.scores[m][r * c + column];
      round.chosen_ids[m][at + i] = round.ids[r * c + column];
    }
  }
}

// Accepts the proposals of one row in order; false, and nothing done, where the bounds leave one open.
bool Sampler::decide(const Round& round, int64_t r) const {
  const int64_t c = round.c, row = round.rows[r], candidates = unseen(row), at = r * Round::kExact;
  const double n = static_cast<double>(candidates);
  const auto bounds_of = [&](int m) {
    return Bounds(&round.chosen_scores[m][at], &round.chosen_ids[m][at], &round.chosen_above[m][at], candidates);
  };
  const Bounds bounds[2] = {bounds_of(0), bounds_of(1)};
  const int64_t before[2] = {directions[0].hits ? directions[0].hits[row] : 0,
                             directions[1].hits ? directions[1].hits[row] : 0};
  for (int to_teacher = 0; to_teacher < 2; ++to_teacher) {
    if (!open(to_teacher, row, round.start)) continue;
    const Direction& d = directions[to_teacher];
    const Accept accepted(seed, step, round.user_ids[r], d.weight, to_teacher == 1, candidates);
    for (int64_t j = 0; j < c && d.hits[row] < k; ++j) {
      const int64_t column = r * c + j, id = round.ids[column];
      const auto [guide0, guide1] = bounds[to_teacher].of(round.scores[to_teacher][column], id);
      const auto [learner0, learner1] = bounds[1 - to_teacher].of(round.scores[1 - to_teacher][column], id);
      const double one = value(d.weight, static_cast<double>(guide1 + 1), static_cast<double>(learner0 + 1), n);
      const double other = value(d.weight, static_cast<double>(guide0 + 1), static_cast<double>(learner1 + 1), n);
      const double limit = round.limit[to_teacher][column];
      bool hit = std::min(one, other) > limit + kRounding;
      if (!hit && !(std::max(one, other) < limit - kRounding)) {
        hit = accepted(round.start + j, guide1 + 1, learner0 + 1);
        if (hit != accepted(round.start + j, guide0 + 1, learner1 + 1)) {
          for (int i = 0; i < 2; ++i) {
            for (int64_t drawn = before[i]; drawn < directions[i].hits[row]; ++drawn)
              directions[i].ids[row * k + drawn] = -1;
            directions[i].hits[row] = before[i];
          }
          return false;
        }
      }
      if (hit) d.ids[row * k + d.hits[row]++] = id;
    }
  }
  return true;
}

}  // namespace bdkernels::cpu
