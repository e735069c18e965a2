// Which proposals of a round need an exact rank. A proposal is accepted if its gap is above a limit that its random number
// sets, so most decisions are clear from a rank that is known roughly. Ranks guessed among the pilot's items tell which ones
// are close; those are counted exactly, and some more at even distances. All others lie between two counted ones, which
// bounds their ranks: the decision must be the same at both ends. A user with one that is not is counted in full. So every
// decision is the exact one; the guesses only choose what is counted.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "../core/order.h"
#include "../core/philox.h"
#include "sampler.h"

namespace bdkernels::cpu {
namespace {

constexpr int64_t kPivots = 16;     // counted at even distances, of each model
constexpr double kSure = 0.06;      // of the gap: further than guesses are off, nearly always
constexpr double kClose = 0.03;     // of the gap: so close to its limit a proposal has to be counted
constexpr int64_t kFewest = 64;     // counted of each user: as many as registers search
constexpr double kRounding = 1e-9;  // of the gap: this close to its limit the weights themselves are compared

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
  return -std::numeric_limits<double>::infinity();
}

// Counted proposals of one user and model, by falling order, to bound the ranks of the others.
class Bounds {
 public:
  Bounds(const float* scores, const int64_t* ids, const int64_t* above, int64_t counted, int64_t n) : sorted_(counted) {
    for (int64_t i = 0; i < counted; ++i) sorted_[i] = {~order_key(scores[i], ids[i]), above[i]};
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
  std::vector<std::pair<uint64_t, int64_t>> sorted_;
  int64_t last_;
};

}  // namespace

Sampler::Nan Sampler::screened(Round& round, const Pilot& pilot, std::vector<int64_t>* undecided) const {
  propose(round);
  pilot.guess(*this, round);
  round.distance.assign(round.size * round.c, std::numeric_limits<float>::infinity());
  for (auto& limit : round.limit) limit.assign(round.size * round.c, std::numeric_limits<double>::quiet_NaN());
  parallel(round.size, 4, [&](int64_t a, int64_t b) {
    for (int64_t r = a; r < b; ++r) weigh(round, r);
  });
  // Room for the close ones of nearly all users.
  std::vector<int64_t> close(round.size);
  for (int64_t r = 0; r < round.size; ++r) {
    const auto row = round.distance.begin() + r * round.c;
    close[r] = std::count_if(row, row + round.c, [](float distance) { return distance < kClose; });
  }
  const auto most = close.begin() + (round.size - 1) * 15 / 16;
  std::nth_element(close.begin(), most, close.end());
  round.exact = *most + kPivots <= kFewest ? kFewest : std::min(round.c, (*most + kPivots + 31) / 32 * 32);
  for (int m = 0; m < 2; ++m) {
    round.chosen_scores[m].resize(round.size * round.exact);
    round.chosen_ids[m].resize(round.size * round.exact);
  }
  parallel(round.size, 4, [&](int64_t a, int64_t b) {
    for (int64_t r = a; r < b; ++r) choose(round, r);
  });
  const Nan nan = count(round, round.exact, round.chosen_scores, round.chosen_ids, round.chosen_above);
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

// Sets limit and distance of one row.
void Sampler::weigh(Round& round, int64_t r) const {
  const int64_t c = round.c, row = round.rows[r];
  const double n = static_cast<double>(unseen(row));
  float* distance = round.distance.data() + r * c;
  for (int to_teacher = 0; to_teacher < 2; ++to_teacher) {
    if (!open(to_teacher, row, round.start)) continue;
    const Direction& d = directions[to_teacher];
    double* limit = round.limit[to_teacher].data() + r * c;
    const int64_t *guide = round.above[to_teacher].data() + r * c, *learner = round.above[1 - to_teacher].data() + r * c;
    int64_t sure = d.hits[row];
    for (int64_t j = 0; j < c && sure < k; ++j) {  // what comes after k sure hits does not matter
      const Words w =
          philox(seed, static_cast<uint32_t>(round.start + j), kAccept, static_cast<uint32_t>(round.user_ids[r]), step);
      limit[j] = limit_of(d.weight, to_teacher ? uniform(w.w[2], w.w[3]) : uniform(w.w[0], w.w[1]), n);
      const double over = value(d.weight, static_cast<double>(guide[j]), static_cast<double>(learner[j]), n) - limit[j];
      sure += over > kSure;
      distance[j] = std::min(distance[j], static_cast<float>(std::abs(over)));
    }
  }
}

// Chooses what is counted of one row: the closest, and pivots at even distances.
void Sampler::choose(Round& round, int64_t r) const {
  const int64_t c = round.c, closest = round.exact - kPivots;
  const float* distance = round.distance.data() + r * c;
  std::vector<std::pair<float, int32_t>> order(c);
  for (int64_t j = 0; j < c; ++j) order[j] = {distance[j], static_cast<int32_t>(j)};
  std::nth_element(order.begin(), order.begin() + closest, order.end());
  for (int m = 0; m < 2; ++m) {
    const int64_t at = r * round.exact;
    const int64_t* above = round.above[m].data() + r * c;
    std::array<int32_t, kPivots> pivots;
    pivots.fill(-1);
    for (int64_t j = closest; j < c; ++j) {
      const int32_t column = order[j].second;
      const int64_t place = above[column] * kPivots / models[m].items.n;
      pivots[std::min(place, kPivots - 1)] = column;
    }
    for (int64_t i = 0; i < round.exact; ++i) {
      int32_t column = order[i].second;  // beyond the close ones, any other where a pivot is missing
      if (i >= closest && pivots[i - closest] >= 0) column = pivots[i - closest];
      round.chosen_scores[m][at + i] = round.scores[m][r * c + column];
      round.chosen_ids[m][at + i] = round.ids[r * c + column];
    }
  }
}

// Accepts the proposals of one row in order; false, and nothing done, where the bounds leave one open.
bool Sampler::decide(const Round& round, int64_t r) const {
  const int64_t c = round.c, row = round.rows[r], candidates = unseen(row), at = r * round.exact;
  const double n = static_cast<double>(candidates);
  const auto bounds_of = [&](int m) {
    return Bounds(&round.chosen_scores[m][at], &round.chosen_ids[m][at], &round.chosen_above[m][at], round.exact,
                  candidates);
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
