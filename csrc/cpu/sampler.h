// All rounds of the sampler: proposals, their scores and ranks under both models, acceptance.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "../core/order.h"
#include "kernels.h"

namespace bdkernels::cpu {

// Calls body on ranges that cover [0, n), in parallel, with at least `grain` in each.
using Body = std::function<void(int64_t, int64_t)>;
using ParallelFor = std::function<void(int64_t n, int64_t grain, const Body& body)>;

struct Model {
  Users users;
  Items items;
};

// The items that ranks are counted over, if not all: item i of them is item ids[i] of the catalog, rising.
struct Subset {
  const int64_t* ids = nullptr;  // null: the whole catalog
  Items items[2] = {};           // of the teacher and the student
  Seen seen = {};                // by their numbers here
};

struct Direction {
  bool on;
  Weight weight;
  int64_t* ids;   // [B, k], -1 at first: the draws
  int64_t* hits;  // [B], 0 at first: how many were drawn
};

struct Sampler {
  Model models[2];          // teacher, student
  Direction directions[2];  // to the student, to the teacher
  Seen seen;
  const int64_t* row_keys;  // [B]
  int64_t k;
  uint64_t seed;
  uint32_t step;
  // A direction of a user with fewer than min_hits among the first `probe` proposals, or fewer than k among the first `cap`,
  // gets the rest from the full row. No rule looks at k otherwise, so draw i stays draw i whatever k is
  // (bdkernels/sampling/sampler.py).
  int64_t probe, min_hits, cap;
  int64_t tile;
  ParallelFor parallel;
  Subset subset = {};

  // The first score that is NaN: of model 0 (teacher) or 1, or -1 where there is none.
  struct Nan {
    int64_t model, row, item;
  };
  Nan run() const;

 private:
  struct Some;
  struct Round;
  struct Counted;
  class Bounds;
  struct Pilot;
  struct FullRow;
  Nan rounds(std::vector<int64_t> rows) const;
  int64_t first(const std::vector<int64_t>& rows, const Pilot& pilot) const;
  int64_t next(const std::vector<int64_t>& rows, int64_t start) const;
  void propose(Round& round) const;
  Nan proposed_nan(const Round& round) const;
  Nan counted_in_full(Round& round) const;
  Nan count(const Some& some, Counted& counted) const;
  void accept(const Round& round) const;
  Nan full_rows() const;
  // screen.cpp
  Nan screened(Round& round, const Pilot& pilot) const;
  void weigh(Round& round, int64_t r) const;
  static int64_t columns_for(std::vector<int64_t> wanted, int64_t c);
  Counted choose(const Round& round) const;
  void choose(const Round& round, int64_t r, Counted& chosen) const;
  static Counted choose_open(const Round& round, const std::vector<int64_t>& places,
                             const std::vector<std::vector<int32_t>>& open);
  std::vector<int32_t> decide(Round& round, int64_t r) const;

  bool open(int64_t direction, int64_t row, int64_t start) const;
  bool lacks(int64_t direction, int64_t row) const {
    return directions[direction].on && directions[direction].hits[row] < k;
  }
  int64_t unseen(int64_t row) const { return models[0].items.n - seen.count(row); }
  // What ranks are counted over.
  bool whole() const { return subset.ids == nullptr; }
  const Items& counted_items(int m) const { return whole() ? models[m].items : subset.items[m]; }
  const Seen& counted_seen() const { return whole() ? seen : subset.seen; }
  int64_t id_of(int64_t counted) const { return whole() ? counted : subset.ids[counted]; }
  // How many unseen items of the catalog come before an item, to the nearest, if so many of the counted ones do.
  int64_t scaled(int64_t row, int64_t above) const {
    if (whole()) return above;
    const int64_t some = std::max<int64_t>(1, subset.items[0].n - subset.seen.count(row));
    return (above * unseen(row) + some / 2) / some;
  }
};

// Some users of the batch.
struct Sampler::Some {
  Some(const Sampler& sampler, std::vector<int64_t> which);
  Some(const Some&) = delete;

  Users users_of(int m) const { return {users[m].data(), size}; }

  std::vector<int64_t> rows;
  int64_t size;
  Seen seen, counted_seen;
  std::vector<int64_t> row_keys;  // [R]
  std::vector<float> users[2];    // [R, d]
};

// A counted proposal: a key that rises as the order falls, and how many items come before it.
using Place = std::pair<uint64_t, int64_t>;

// Proposals start .. start + c - 1 of some users, and what is found out about them.
struct Sampler::Round : Some {
  Round(const Sampler& sampler, std::vector<int64_t> which, int64_t first, int64_t count);

  int64_t start, c;
  std::vector<int64_t> ids;       // [R, c]
  std::vector<float> scores[2];   // [R, c]
  std::vector<int64_t> above[2];  // [R, c], rank - 1, or a guess of it
  // To screen them:
  std::vector<float> distance;   // [R, c] how far the guessed value is from a limit; infinite where that does not matter
  std::vector<double> limit[2];  // [R, c] of each direction: accepted if the value is above; NaN where it does not matter
  std::vector<std::vector<Place>> counted[2];  // [R] so far
};

// Some proposals of some users, [R, c] chosen for each model, and how many items of the catalog come before them.
struct Sampler::Counted {
  Counted(int64_t size, int64_t columns) : c(columns) {
    for (int m = 0; m < 2; ++m) {
      scores[m].resize(size * c);
      ids[m].resize(size * c);
      above[m].resize(size * c);
    }
  }

  // Column j of row i is this proposal.
  void take(int m, int64_t i, int64_t j, const Round& round, int64_t r, int64_t column) {
    scores[m][i * c + j] = round.scores[m][r * round.c + column];
    ids[m][i * c + j] = round.ids[r * round.c + column];
  }

  void add_to(std::vector<Place>& out, int m, int64_t i) const {
    for (int64_t at = i * c; at < (i + 1) * c; ++at) out.emplace_back(~order_key(scores[m][at], ids[m][at]), above[m][at]);
  }

  int64_t c;
  std::vector<float> scores[2];
  std::vector<int64_t> ids[2], above[2];
};

// Every so many-th item of both models, to guess ranks by.
struct Sampler::Pilot {
  explicit Pilot(const Sampler& sampler);
  // Ranks - 1 of the proposals, as a histogram of the scores of the pilot's items suggests -> round.above.
  void guess(const Sampler& sampler, Round& round) const;

  int64_t n;
  Items items[2];
  std::vector<char> bias[2];
};

}  // namespace bdkernels::cpu
