// Which proposals of a round need an exact rank. A proposal is accepted if its gap is above a limit that its random number
// sets, so most decisions are clear from a rank that is known roughly. Ranks guessed among the pilot's items tell which ones
// are close; those are counted exactly, and some more at even distances. All others lie between two counted ones, which
// bounds their ranks: the decision must be the same at both ends. Where it is not, a further look counts those too. So every
// decision is the exact one; the guesses only choose what is counted.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
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

}  // namespace

// The counted proposals of one user and model, to bound the ranks of the others.
class Sampler::Bounds {
 public:
  // `counted` gets into falling order; n candidates. Where ranks are of the whole catalog, a counted one adds to those of
  // the others; a proposal need not be in a subset.
  Bounds(std::vector<Place>& counted, int64_t n, bool whole) : half_(std::bit_floor(counted.size())), itself_(whole) {
    std::sort(counted.begin(), counted.end());
    keys_.assign(2 * half_, ~uint64_t{0});
    least_.assign(1, 1);
    for (size_t i = 0; i < counted.size(); ++i) {
      const auto above = static_cast<double>(counted[i].second);
      keys_[i] = counted[i].first;
      most_.push_back(above + 1 - itself_);
      least_.push_back(above + 1 + itself_);
    }
    most_.push_back(static_cast<double>(n) + 1 - itself_);
  }

  // Best and worst rank of this one.
  std::pair<double, double> of(float score, int64_t id) const {
    const uint64_t key = ~order_key(score, id);
    size_t at = 0;  // how many come before it
    for (size_t step = half_; step > 0; step /= 2) at = keys_[at + step - 1] < key ? at + step : at;
    if (keys_[at] == key) return {most_[at] + itself_, most_[at] + itself_};
    return {least_[at], most_[at]};
  }

 private:
  size_t half_;
  double itself_;
  std::vector<uint64_t> keys_;        // padded to a power of two
  std::vector<double> least_, most_;  // ranks of one that comes behind the first i counted ones, and before the others
};

Sampler::Nan Sampler::screened(Round& round, const Pilot& pilot) const {
  propose(round);
  if (const Nan nan = proposed_nan(round); nan.model >= 0) return nan;
  pilot.guess(*this, round);
  round.distance.assign(round.size * round.c, std::numeric_limits<float>::infinity());
  for (auto& limit : round.limit) limit.assign(round.size * round.c, std::numeric_limits<double>::quiet_NaN());
  for (auto& counted : round.counted) counted.resize(round.size);
  parallel(round.size, 4, [&](int64_t a, int64_t b) {
    for (int64_t r = a; r < b; ++r) weigh(round, r);
  });
  std::vector<int64_t> places(round.size);  // of the users who are not decided yet
  std::iota(places.begin(), places.end(), 0);
  std::vector<std::vector<int32_t>> open(round.size);
  Counted now = choose(round);
  while (true) {
    std::vector<int64_t> rows;
    for (const int64_t r : places) rows.push_back(round.rows[r]);
    const Some some(*this, std::move(rows));
    if (const Nan nan = count(some, now); nan.model >= 0) return nan;
    parallel(some.size, 4, [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; ++i) {
        for (int m = 0; m < 2; ++m) now.add_to(round.counted[m][places[i]], m, i);
        open[places[i]] = decide(round, places[i]);
      }
    });
    std::erase_if(places, [&](int64_t r) { return open[r].empty(); });
    if (places.empty()) return {-1, 0, 0};
    now = choose_open(round, places, open);
  }
}

// Sets limit and distance of one row.
void Sampler::weigh(Round& round, int64_t r) const {
  const int64_t c = round.c, row = round.rows[r];
  const double n = static_cast<double>(unseen(row));
  float* distance = round.distance.data() + r * c;
  std::vector<uint32_t> words(4 * c);
  simd().random(seed, static_cast<uint32_t>(round.start), kAccept, static_cast<uint64_t>(round.row_keys[r]), step, c,
                words.data());
  for (int to_teacher = 0; to_teacher < 2; ++to_teacher) {
    if (!open(to_teacher, row, round.start)) continue;
    const Direction& d = directions[to_teacher];
    double* limit = round.limit[to_teacher].data() + r * c;
    const int64_t *guide = round.above[to_teacher].data() + r * c, *learner = round.above[1 - to_teacher].data() + r * c;
    int64_t sure = d.hits[row];
    for (int64_t j = 0; j < c && sure < k; ++j) {  // what comes after k sure hits does not matter
      limit[j] = limit_of(d.weight, uniform(words[2 * to_teacher * c + j], words[(2 * to_teacher + 1) * c + j]), n);
      const double over = value(d.weight, static_cast<double>(guide[j]), static_cast<double>(learner[j]), n) - limit[j];
      sure += over > kSure;
      distance[j] = std::min(distance[j], static_cast<float>(std::abs(over)));
    }
  }
}

// How many columns a look takes: enough for nearly all users, and no fewer than registers search.
int64_t Sampler::columns_for(std::vector<int64_t> wanted, int64_t c) {
  const auto most = wanted.begin() + (std::ssize(wanted) - 1) * 15 / 16;
  std::nth_element(wanted.begin(), most, wanted.end());
  return *most <= kFewest ? kFewest : std::min(c, (*most + 31) / 32 * 32);
}

// The first look: the closest of each row, and pivots at even distances.
Sampler::Counted Sampler::choose(const Round& round) const {
  std::vector<int64_t> wanted(round.size);
  for (int64_t r = 0; r < round.size; ++r) {
    const auto row = round.distance.begin() + r * round.c;
    wanted[r] = kPivots + std::count_if(row, row + round.c, [](float distance) { return distance < kClose; });
  }
  Counted chosen(round.size, columns_for(wanted, round.c));
  parallel(round.size, 4, [&](int64_t a, int64_t b) {
    for (int64_t r = a; r < b; ++r) choose(round, r, chosen);
  });
  return chosen;
}

void Sampler::choose(const Round& round, int64_t r, Counted& chosen) const {
  const int64_t c = round.c, closest = chosen.c - kPivots;
  const float* distance = round.distance.data() + r * c;
  std::vector<int32_t> order(c);
  std::iota(order.begin(), order.end(), 0);
  const auto rest = std::partition(order.begin(), order.end(), [&](int32_t j) { return distance[j] < 2 * kClose; });
  const auto nearer = [&](int32_t a, int32_t b) { return distance[a] < distance[b]; };
  if (rest - order.begin() > closest) std::nth_element(order.begin(), order.begin() + closest, rest, nearer);
  for (int m = 0; m < 2; ++m) {
    const int64_t* above = round.above[m].data() + r * c;
    std::array<int32_t, kPivots> pivots;
    pivots.fill(-1);
    for (int64_t j = closest; j < c; ++j)
      pivots[std::min(above[order[j]] * kPivots / models[m].items.n, kPivots - 1)] = order[j];
    for (int64_t i = 0; i < chosen.c; ++i) {  // beyond the close ones, any other where a pivot is missing
      const bool pivot = i >= closest && pivots[i - closest] >= 0;
      chosen.take(m, r, i, round, r, pivot ? pivots[i - closest] : order[i]);
    }
  }
}

// Each further look: what the bounds left open.
Sampler::Counted Sampler::choose_open(const Round& round, const std::vector<int64_t>& places,
                                      const std::vector<std::vector<int32_t>>& open) {
  std::vector<int64_t> wanted;
  for (const int64_t r : places) wanted.push_back(std::ssize(open[r]));
  Counted chosen(std::ssize(places), columns_for(wanted, round.c));
  for (int64_t i = 0; i < std::ssize(places); ++i) {
    const std::vector<int32_t>& columns = open[places[i]];
    for (int64_t j = 0; j < chosen.c; ++j) {
      for (int m = 0; m < 2; ++m) chosen.take(m, i, j, round, places[i], columns[std::min(j, std::ssize(columns) - 1)]);
    }
  }
  return chosen;
}

// Accepts the proposals of one row in order. Returns the columns that the bounds leave open: then nothing is done.
std::vector<int32_t> Sampler::decide(Round& round, int64_t r) const {
  const int64_t c = round.c, row = round.rows[r], candidates = unseen(row);
  const double n = static_cast<double>(candidates);
  const Bounds bounds[2] = {{round.counted[0][r], candidates, whole()}, {round.counted[1][r], candidates, whole()}};
  int64_t before[2];
  for (int i = 0; i < 2; ++i) before[i] = directions[i].on ? directions[i].hits[row] : 0;
  std::vector<int32_t> columns;
  for (int to_teacher = 0; to_teacher < 2; ++to_teacher) {
    if (!open(to_teacher, row, round.start)) continue;
    const Direction& d = directions[to_teacher];
    const Accept accepted(seed, step, round.row_keys[r], d.weight, to_teacher == 1, candidates);
    for (int64_t j = 0; j < c && d.hits[row] < k; ++j) {
      const int64_t column = r * c + j, id = round.ids[column];
      const auto [guide0, guide1] = bounds[to_teacher].of(round.scores[to_teacher][column], id);
      const auto [learner0, learner1] = bounds[1 - to_teacher].of(round.scores[1 - to_teacher][column], id);
      const double one = value(d.weight, guide1, learner0, n), other = value(d.weight, guide0, learner1, n);
      const double limit = round.limit[to_teacher][column];
      bool hit = std::min(one, other) > limit + kRounding;
      if (!hit && !(std::max(one, other) < limit - kRounding)) {
        hit = accepted(round.start + j, static_cast<int64_t>(guide1), static_cast<int64_t>(learner0));
        if (hit != accepted(round.start + j, static_cast<int64_t>(guide0), static_cast<int64_t>(learner1))) {
          columns.push_back(static_cast<int32_t>(j));
          hit = false;  // then more may matter, never less
        }
      }
      if (hit) d.ids[row * k + d.hits[row]++] = id;
    }
  }
  for (int i = 0; i < 2 && !columns.empty(); ++i) {
    if (!directions[i].on) continue;
    std::fill(directions[i].ids + row * k + before[i], directions[i].ids + row * k + directions[i].hits[row], -1);
    directions[i].hits[row] = before[i];
  }
  return columns;
}

}  // namespace bdkernels::cpu
