// The CPU backend's stages. Torch-free: raw pointers in, ranges of work that any thread pool may run in any order.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "../core/rule.h"
#include "../core/score.h"
#include "../core/seen.h"
#include "../core/step.h"
#include "../core/weight.h"
#include "simd/simd.h"
#include "thresholds.h"

namespace bdkernels::cpu {

// ---- score ----

// Scores of the listed items ids [B, C] for rows [row0, row1) -> out [B, C].
void score(const Users& users, const Items& items, const int64_t* ids, int64_t c, int64_t row0, int64_t row1, float* out);

// Scores of items [item0, item1) for all users -> out [B, items.n].
void score_block(const Users& users, const Items& items, int64_t item0, int64_t item1, float* out);

// ---- rank ----

// Adds to out [B, C] (zeros at first) how many items come before each (threshold, tie id): score higher, or equal with a
// lower id. Tasks 0 .. tasks() - 1 may run in any order and in parallel, best in long runs.
class CountAbove {
 public:
  // Either users and items, or the scores [B, n] that the caller has already.
  struct Source {
    Users users;
    Items items;
    const float* scores;
  };

  CountAbove(const Source& source, int64_t b, const Query& query, const Seen& seen, int64_t tile, int64_t* out);

  int64_t tasks() const { return user_blocks_ * tiles_; }
  void run(int64_t task0, int64_t task1);
  // row * n + item of a score that is NaN, or -1.
  int64_t nan_at() const { return nan_at_.load(); }

 private:
  void take_out_seen(int64_t row, const Thresholds& t) const;
  void found_nan(int64_t row, int64_t item);

  Source from_;
  int64_t b_;
  Query query_;
  Seen seen_;
  int64_t* out_;
  int64_t tile_, tiles_, user_block_, user_blocks_;
  std::atomic<int64_t> nan_at_{-1};
};

// ---- sample ----

// Proposals start .. start + c - 1 of rows [row0, row1), uniform over the unseen items -> out [B, C]; -1 if there is none.
void propose(uint64_t seed, uint32_t step, const int64_t* row_keys, int64_t start, int64_t c, int64_t n_items,
             const Seen& seen, int64_t row0, int64_t row1, int64_t* out);

// Whether a user's proposal is accepted for one direction.
struct Accept {
  Accept(uint64_t seed, uint32_t step, int64_t row_key, const Weight& weight, bool to_teacher, int64_t n);
  bool operator()(int64_t index, int64_t rank_guide, int64_t rank_learner) const;

  uint64_t seed;
  uint32_t step;
  uint64_t row_key;
  Weight weight;
  int word;   // of the random words, where this direction's begin
  int64_t n;  // candidates
  double log_max;
};

// Which proposals are accepted for one direction -> out [B, C].
void accept(uint64_t seed, uint32_t step, const int64_t* row_keys, int64_t start, int64_t c, const int64_t* rank_guide,
            const int64_t* rank_learner, const int64_t* candidates, const Weight& weight, bool to_teacher, int64_t row0,
            int64_t row1, bool* out);

// ---- topk ----

// The k best unseen items of each user, for k from 1 to items.n.
// Tasks 0 .. tasks() - 1, then finish() on every row; each step may run in parallel.
class TopK {
 public:
  TopK(const Users& users, const Items& items, int64_t k, const Seen& seen, int64_t threads, int64_t tile);

  int64_t tasks() const { return user_blocks_ * ranges_; }
  void run(int64_t task0, int64_t task1);
  // -> scores, ids [B, k], best first; -inf and -1 where there are too few.
  void finish(int64_t row0, int64_t row1, float* scores, int64_t* ids);
  // row * n + item of a score that is NaN, or -1.
  int64_t nan_at() const { return nan_at_.load(); }

 private:
  void found_nan(int64_t row, int64_t item);

  Users users_;
  Items items_;
  int64_t k_;
  Seen seen_;
  int64_t tile_, block_, user_blocks_, range_, ranges_, capacity_;
  std::unique_ptr<uint64_t[]> keys_;  // [B, ranges, capacity] order keys of what may be among the k best
  std::vector<int64_t> sizes_;        // [B, ranges] how many
  std::atomic<int64_t> nan_at_;
};

// ---- loss ----

// What each row gives: sums of its loss terms, the gradient of its user row, and the slope of the loss in each of its
// scores. Where a score is not finite, cf is NaN.
struct RowLosses {
  double *cf, *distill;  // [b]
  float* user_grad;      // [b, d]
  float* slopes;         // [b, width]
};

void step_rows(const Rows& users, const Rows& items, const float* bias, const Batch& batch, const Objective& objective,
               int64_t row0, int64_t row1, const RowLosses& out);

// Gradients of the item rows -> out [b, width, d].
void item_grads(const Rows& users, const Batch& batch, const float* slopes, int64_t row0, int64_t row1, float* out);

// ---- update ----

struct Touch {
  int64_t id, at;  // a row of a table, and the place in the batch that touches it
};

// Item ids [b, width] of a batch.
std::vector<int64_t> listed_items(const Batch& batch);

// Touches of ids [n] below `limit`, in the order of (id, at).
std::vector<Touch> sort_touches(const int64_t* ids, int64_t n, int64_t limit);

// Add up the gradient of each touched row in the order of `at`, and apply the rule once. Tasks are ranges of touches: one
// owns the rows whose first touch lies in it, so that the sums do not depend on how the work is split.
// Gradients: of items slopes[at] times the user's row, of users user_grad[at], of biases slopes[at].
void update_items(const Trained& items, const Rows& users, const Batch& batch, const float* slopes, const Rule& rule,
                  const std::vector<Touch>& touches, int64_t first, int64_t last);
void update_own(const Trained& rows, const float* grads, const Rule& rule, const std::vector<Touch>& touches, int64_t first,
                int64_t last);

}  // namespace bdkernels::cpu
