// Which proposals of a round need an exact rank. A proposal is accepted if its gap is above a limit that its random number
// sets, so most decisions are clear from a rank that is known roughly. Ranks guessed among the pilot's items tell which ones
// are close; those are counted exactly, and some more at even distances. All others lie between two counted ones, which
// bounds their ranks: the decision must be the same at both ends. A user with one that is not is counted in full. So every
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

// Counted proposals of one user and model, by falling order, to bound the ranks of the others.
struct Sampler::Bounds {
  void add(const Counted& counted, int m, int64_t r) {
    for (int64_t at = r * counted.c; at < (r + 1) * counted.c; ++at) {
      sorted.emplace_back(~order_key(counted.scores[m][at], counted.ids[m][at]), counted.above[m][at]);
    }
  }

  void sort(int64_t n) {
    std::sort(sorted.begin(), sorted.end());
    half = std::bit_floor(sorted.size());
    keys.assign(2 * half, ~uint64_t{0});
    least.assign(1, 1);
    for (size_t i = 0; i < sorted.size(); ++i) {
      const auto above = static_cast<double>(sorted[i].second);
      keys[i] = sorted[i].first;
      most.push_back(above);
      least.push_back(above + 2);
    }
    most.push_back(static_cast<double>(n));
  }

  // Best and worst rank of this one.
  std::pair<double, double> of(float score, int64_t id) const {
    const uint64_t key = ~order_key(score, id);
    size_t at = 0;  // how many come before it
    for (size_t step = half; step > 0; step /= 2) at = keys[at + step - 1] < key ? at + step : at;
    if (keys[at] == key) return {most[at] + 1, most[at] + 1};
    return {least[at], most[at]};
  }

  std::vector<std::pair<uint64_t, int64_t>> sorted;
  std::vector<uint64_t> keys;       // padded to a power of two
  std::vector<double> least, most;  // ranks of one that comes behind the first i counted ones, and before the others
  size_t half = 0;
};

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
  Counted chosen(round.size, *most + kPivots <= kFewest ? kFewest : std::min(round.c, (*most + kPivots + 31) / 32 * 32));
  parallel(round.size, 4, [&](int64_t a, int64_t b) {
    for (int64_t r = a; r < b; ++r) choose(round, r, chosen);
  });
  if (const Nan nan = count(round, chosen); nan.model >= 0) return nan;
  std::vector<std::vector<int32_t>> open(round.size);
  parallel(round.size, 4, [&](int64_t a, int64_t b) {
    for (int64_t r = a; r < b; ++r) {
      Bounds bounds[2];
      for (int m = 0; m < 2; ++m) {
        bounds[m].add(chosen, m, r);
        bounds[m].sort(unseen(round.rows[r]));
      }
      open[r] = decide(round, r, bounds);
    }
  });
  // What is open is counted too.
  std::vector<int64_t> places, rows;
  for (int64_t r = 0; r < round.size; ++r) {
    if (open[r].empty()) continue;
    places.push_back(r);
    rows.push_back(round.rows[r]);
  }
  if (rows.empty()) return {-1, 0, 0};
  const Some few(*this, rows);
  Counted more(few.size, kFewest);
  for (int64_t i = 0; i < few.size; ++i) {
    const std::vector<int32_t>& columns = open[places[i]];
    for (int64_t j = 0; j < more.c; ++j) {
      const int64_t column = places[i] * round.c + columns[std::min(j, std::ssize(columns) - 1)];
      for (int m = 0; m < 2; ++m) {
        more.scores[m][i * more.c + j] = round.scores[m][column];
        more.ids[m][i * more.c + j] = round.ids[column];
      }
    }
  }
  if (const Nan nan = count(few, more); nan.model >= 0) return nan;
  parallel(few.size, 4, [&](int64_t a, int64_t b) {
    for (int64_t i = a; i < b; ++i) {
      Bounds bounds[2];
      for (int m = 0; m < 2; ++m) {
        bounds[m].add(chosen, m, places[i]);
        bounds[m].add(more, m, i);
        bounds[m].sort(unseen(rows[i]));
      }
      open[places[i]] = decide(round, places[i], bounds);
    }
  });
  for (const int64_t r : places) {
    if (!open[r].empty()) undecided->push_back(round.rows[r]);
  }
  return {-1, 0, 0};
}

// Sets limit and distance of one row.
void Sampler::weigh(Round& round, int64_t r) const {
  const int64_t c = round.c, row = round.rows[r];
  const double n = static_cast<double>(unseen(row));
  float* distance = round.distance.data() + r * c;
  std::vector<uint32_t> words(4 * c);
  simd().random(seed, static_cast<uint32_t>(round.start), kAccept, static_cast<uint32_t>(round.user_ids[r]), step, c,
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

// Chooses what is counted of one row: the closest, and pivots at even distances.
void Sampler::choose(const Round& round, int64_t r, Counted& chosen) const {
  const int64_t c = round.c, closest = chosen.c - kPivots;
  const float* distance = round.distance.data() + r * c;
  std::vector<int32_t> order(c);
  std::iota(order.begin(), order.end(), 0);
  const auto rest = std::partition(order.begin(), order.end(), [&](int32_t j) { return distance[j] < 2 * kClose; });
  const auto nearer = [&](int32_t a, int32_t b) { return distance[a] < distance[b]; };
  if (rest - order.begin() > closest) std::nth_element(order.begin(), order.begin() + closest, rest, nearer);
  for (int m = 0; m < 2; ++m) {
    const int64_t at = r * chosen.c;
    const int64_t* above = round.above[m].data() + r * c;
    std::array<int32_t, kPivots> pivots;
    pivots.fill(-1);
    for (int64_t j = closest; j < c; ++j) {
      const int32_t column = order[j];
      const int64_t place = above[column] * kPivots / models[m].items.n;
      pivots[std::min(place, kPivots - 1)] = column;
    }
    for (int64_t i = 0; i < chosen.c; ++i) {
      int32_t column = order[i];  // beyond the close ones, any other where a pivot is missing
      if (i >= closest && pivots[i - closest] >= 0) column = pivots[i - closest];
      chosen.scores[m][at + i] = round.scores[m][r * c + column];
      chosen.ids[m][at + i] = round.ids[r * c + column];
    }
  }
}

// Accepts the proposals of one row in order. Returns the columns that the bounds leave open: then nothing is done.
std::vector<int32_t> Sampler::decide(const Round& round, int64_t r, const Bounds* bounds) const {
  const int64_t c = round.c, row = round.rows[r], candidates = unseen(row);
  const double n = static_cast<double>(candidates);
  int64_t before[2];
  for (int i = 0; i < 2; ++i) before[i] = directions[i].on ? directions[i].hits[row] : 0;
  std::vector<int32_t> columns;
  for (int to_teacher = 0; to_teacher < 2; ++to_teacher) {
    if (!open(to_teacher, row, round.start)) continue;
    const Direction& d = directions[to_teacher];
    const Accept accepted(seed, step, round.user_ids[r], d.weight, to_teacher == 1, candidates);
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
