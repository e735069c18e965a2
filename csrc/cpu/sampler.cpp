// The sampler's rounds. A round streams the catalog once for each model, whatever the number of its proposals, so the first
// one is made large enough to be the last for nearly all users: a pilot of a few users and items tells how many are
// accepted. How many proposals a round has changes no draw: a user's draws are his first k accepted proposals.
#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "../core/philox.h"

namespace bdkernels::cpu {
namespace {

constexpr int64_t kMost = 1024, kFewest = 32;  // proposals of a round: the thresholds of more do not fit the cache
constexpr int64_t kInFlight = 1 << 18;         // proposals of a round over all users, at most: 8 MB
constexpr int64_t kFewToScreen = 96;           // so many are counted at once, without a choice
constexpr int64_t kPilotUsers = 32, kPilotProposals = 256;  // of the first look
constexpr int64_t kPilotLeast = 1024, kPilotMost = 4096;    // items

// Proposals after which k more draws are there with high probability: three standard deviations more than the mean.
int64_t enough(double k, double rate) {
  const double c = (k + 3 * std::sqrt(k)) / std::max(rate, 1e-9);
  return std::clamp(static_cast<int64_t>(std::min(c, 1e9)) / 16 * 16 + 16, kFewest, kMost);
}

}  // namespace

Sampler::Some::Some(const Sampler& s, std::vector<int64_t> which)
    : rows(std::move(which)), size(static_cast<int64_t>(rows.size())), seen(s.seen), counted_seen(s.counted_seen()) {
  seen.rows = counted_seen.rows = rows.data();
  for (const int64_t row : rows) row_keys.push_back(s.row_keys[row]);
  for (int m = 0; m < 2; ++m) {
    const int64_t d = s.models[m].items.d;
    users[m].resize(size * d);
    for (int64_t r = 0; r < size; ++r) std::copy_n(s.models[m].users.data + rows[r] * d, d, users[m].data() + r * d);
  }
}

Sampler::Round::Round(const Sampler& s, std::vector<int64_t> which, int64_t first, int64_t count)
    : Some(s, std::move(which)), start(first), c(count), ids(size * c) {
  for (int m = 0; m < 2; ++m) {
    scores[m].resize(size * c);
    above[m].resize(size * c);
  }
}

Sampler::Pilot::Pilot(const Sampler& s) {
  const int64_t all = s.counted_items(0).n, skip = std::max<int64_t>(1, all / std::clamp(all / 24, kPilotLeast, kPilotMost));
  n = all / skip;
  for (int m = 0; m < 2; ++m) {
    items[m] = s.counted_items(m);
    items[m].n = n;
    items[m].stride *= skip;
    if (!items[m].bias) continue;
    const size_t width = items[m].dtype == Dtype::kFloat32 ? 4 : 2;
    const char* from = static_cast<const char*>(items[m].bias);
    for (int64_t i = 0; i < n; ++i) bias[m].insert(bias[m].end(), from + i * skip * width, from + (i * skip + 1) * width);
    items[m].bias = bias[m].data();
  }
}

void Sampler::Pilot::guess(const Sampler& s, Round& round) const {
  constexpr int64_t kUsers = 16, kBins = 512;
  const int64_t all = s.models[0].items.n;
  s.parallel(round.size, kUsers, [&](int64_t a, int64_t b) {
    std::vector<float> scores(kUsers * n);
    for (int m = 0; m < 2; ++m) {
      for (int64_t r0 = a; r0 < b; r0 += kUsers) {
        const Users some{round.users[m].data() + r0 * items[m].d, std::min(kUsers, b - r0)};
        score_block(some, items[m], 0, n, scores.data());
        for (int64_t r = r0; r < r0 + some.n; ++r) {
          const float* mine = scores.data() + (r - r0) * n;
          const auto [low, high] = std::minmax_element(mine, mine + n);
          const float base = *low, scale = kBins / (*high - *low);
          const auto bin = [&](float x) {
            const float at = (x - base) * scale;
            return at > 0 ? (at < kBins - 1 ? static_cast<int64_t>(at) : kBins - 1) : 0;
          };
          int64_t above[kBins + 1] = {};
          for (int64_t i = 0; i < n; ++i) ++above[bin(mine[i])];
          for (int64_t i = kBins - 1; i >= 0; --i) above[i] += above[i + 1];
          for (int64_t at = r * round.c; at < (r + 1) * round.c; ++at) {  // the middle of its bin
            const int64_t i = bin(round.scores[m][at]);
            round.above[m][at] = (above[i] + above[i + 1]) * all / (2 * n);
          }
        }
      }
    }
  });
}

Sampler::Nan Sampler::run() const {
  const int64_t batch = models[0].users.n;
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < batch; ++row) {
    if (unseen(row) > 0) rows.push_back(row);
  }
  if (const Nan nan = rounds(std::move(rows)); nan.model >= 0) return nan;
  return full_rows();
}

Sampler::Nan Sampler::rounds(std::vector<int64_t> rows) const {
  if (rows.empty() || cap == 0) return {-1, 0, 0};
  const Pilot pilot(*this);
  int64_t c = first(rows, pilot);
  for (int64_t start = 0; !rows.empty() && start < cap; c = next(rows, start)) {
    const int64_t stop = std::min(start + c, start < probe ? probe : cap);
    const size_t together = std::max<int64_t>(64, kInFlight / (stop - start));
    for (size_t done = 0; done < rows.size(); done += together) {
      const auto begin = rows.begin() + done;
      Round round(*this, {begin, begin + std::min(together, rows.size() - done)}, start, stop - start);
      const Nan nan = round.c > kFewToScreen ? screened(round, pilot) : counted_in_full(round);
      if (nan.model >= 0) return nan;
    }
    start = stop;
    std::erase_if(rows, [&](int64_t row) { return !open(0, row, start) && !open(1, row, start); });
  }
  return {-1, 0, 0};
}

bool Sampler::open(int64_t direction, int64_t row, int64_t start) const {
  return lacks(direction, row) && (start < probe || directions[direction].hits[row] >= min_hits);
}

// How many proposals the first round shall have, by the weights of some users' proposals at the ranks that the pilot
// guesses.
int64_t Sampler::first(const std::vector<int64_t>& rows, const Pilot& pilot) const {
  std::vector<int64_t> some;
  const size_t apart = std::max<size_t>(1, rows.size() / kPilotUsers);
  for (size_t r = 0; r < rows.size() && some.size() < kPilotUsers; r += apart) some.push_back(rows[r]);
  Round round(*this, some, 0, kPilotProposals);
  propose(round);
  pilot.guess(*this, round);
  int64_t c = kFewest;
  for (int to_teacher = 0; to_teacher < 2; ++to_teacher) {
    const Direction& d = directions[to_teacher];
    if (!d.on) continue;
    const std::vector<int64_t>&guide = round.above[to_teacher], &learner = round.above[1 - to_teacher];
    const double log_max = max_log_weight(d.weight, models[0].items.n);
    double sum = 0, squares = 0;
    for (int64_t r = 0; r < round.size; ++r) {
      double rate = 0;
      for (int64_t at = r * round.c; at < (r + 1) * round.c; ++at) {
        const int64_t delta = d.weight.flipped ? learner[at] - guide[at] : guide[at] - learner[at];
        const double w = std::exp(log_weight(d.weight, delta, models[0].items.n, guide[at] + 1) - log_max);
        rate += w > 0 ? w : 0;
      }
      rate /= static_cast<double>(round.c);
      sum += rate;
      squares += rate * rate;
    }
    const double users = static_cast<double>(round.size), mean = sum / users;
    const double spread = std::sqrt(std::max(0.0, squares / users - mean * mean));
    c = std::max(c, enough(static_cast<double>(k), std::max(mean - spread, mean / 2)));
  }
  return c;
}

// The next round's proposals, by how many were accepted so far of the user who lags most.
int64_t Sampler::next(const std::vector<int64_t>& rows, int64_t start) const {
  int64_t c = kFewest;
  for (const int64_t row : rows) {
    for (int i = 0; i < 2; ++i) {
      if (!open(i, row, start)) continue;
      const double hits = static_cast<double>(directions[i].hits[row]);
      c = std::max(c, enough(static_cast<double>(k) - hits, (hits + 1) / static_cast<double>(start + 1)));
    }
  }
  return c;
}

void Sampler::propose(Round& round) const {
  parallel(round.size, 4, [&](int64_t a, int64_t b) {
    cpu::propose(seed, step, round.row_keys.data(), round.start, round.c, models[0].items.n, round.seen, a, b,
                 round.ids.data());
    for (int m = 0; m < 2; ++m) {
      score(round.users_of(m), models[m].items, round.ids.data(), round.c, a, b, round.scores[m].data());
    }
  });
}

// A score of a proposal that is NaN: those are not among the counted items, which are looked at anyway.
Sampler::Nan Sampler::proposed_nan(const Round& round) const {
  for (int m = 0; m < 2 && !whole(); ++m) {
    const auto at = std::find_if(round.scores[m].begin(), round.scores[m].end(), [](float x) { return std::isnan(x); });
    const int64_t place = at - round.scores[m].begin();
    if (at != round.scores[m].end()) return {m, round.rows[place / round.c], round.ids[place]};
  }
  return {-1, 0, 0};
}

// A round with few proposals: all are counted.
Sampler::Nan Sampler::counted_in_full(Round& round) const {
  propose(round);
  if (const Nan nan = proposed_nan(round); nan.model >= 0) return nan;
  Counted all(round.size, round.c);
  for (int m = 0; m < 2; ++m) {
    all.scores[m] = round.scores[m];
    all.ids[m] = round.ids;
  }
  if (const Nan nan = count(round, all); nan.model >= 0) return nan;
  for (int m = 0; m < 2; ++m) round.above[m].swap(all.above[m]);
  accept(round);
  return {-1, 0, 0};
}

// Sets counted.above.
Sampler::Nan Sampler::count(const Some& some, Counted& counted) const {
  const int64_t n = counted_items(0).n, c = counted.c;
  std::vector<int64_t> places;  // of the proposals among a subset
  for (int m = 0; m < 2; ++m) {
    const int64_t* ties = counted.ids[m].data();
    if (!whole()) {
      places.resize(some.size * c);
      parallel(some.size, 4, [&](int64_t a, int64_t b) {
        for (int64_t i = a * c; i < b * c; ++i)
          places[i] = std::lower_bound(subset.ids, subset.ids + n, ties[i]) - subset.ids;
      });
      ties = places.data();
    }
    int64_t* above = counted.above[m].data();
    std::fill_n(above, some.size * c, 0);
    CountAbove work({some.users_of(m), counted_items(m), nullptr}, some.size, {counted.scores[m].data(), ties, c, 0, n},
                    some.counted_seen, tile, above);
    parallel(work.tasks(), 1, [&](int64_t a, int64_t b) { work.run(a, b); });
    if (const int64_t at = work.nan_at(); at >= 0) return {m, some.rows[at / n], id_of(at % n)};
    for (int64_t i = 0; i < some.size * c && !whole(); ++i) above[i] = scaled(some.rows[i / c], above[i]);
  }
  return {-1, 0, 0};
}

void Sampler::accept(const Round& round) const {
  parallel(round.size, 4, [&](int64_t a, int64_t b) {
    for (int to_teacher = 0; to_teacher < 2; ++to_teacher) {
      const Direction& d = directions[to_teacher];
      const std::vector<int64_t>&guide = round.above[to_teacher == 1], &learner = round.above[to_teacher == 0];
      for (int64_t r = a; r < b; ++r) {
        const int64_t row = round.rows[r], n = unseen(row);
        if (!open(to_teacher, row, round.start)) continue;
        const Accept accepts(seed, step, round.row_keys[r], d.weight, to_teacher == 1, n);
        for (int64_t j = 0; j < round.c && d.hits[row] < k; ++j) {
          const int64_t at = r * round.c + j;
          if (accepts(round.start + j, guide[at] + 1, learner[at] + 1)) d.ids[row * k + d.hits[row]++] = round.ids[at];
        }
      }
    }
  });
}

}  // namespace bdkernels::cpu
