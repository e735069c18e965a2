// The CPU backend's stages. Torch-free: raw pointers in, ranges of work that any thread pool may run in any order.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "../core/score.h"
#include "../core/seen.h"
#include "../core/weight.h"
#include "simd/simd.h"

namespace bdkernels::cpu {

// ---- score ----

// Scores of the listed items ids [B, C] for rows [row0, row1) -> out [B, C].
void score(const Users& users, const Items& items, const int64_t* ids, int64_t c, int64_t row0, int64_t row1, float* out);

// Scores of items [item0, item1) for all users -> out [B, items.n].
void score_block(const Users& users, const Items& items, int64_t item0, int64_t item1, float* out);

// ---- rank ----

// Counts of the items that come before each (threshold, tie id): score higher, or equal with a lower id.
// prepare() on every row, then tasks 0 .. tasks() - 1, then finish() on every row; each step may run in parallel.
class CountAbove {
 public:
  CountAbove(const Users& users, const Items& items, const float* thresholds, const int64_t* tie_ids, int64_t c,
             const Seen& seen, int64_t item_offset, int64_t tile);
  // The same where the caller has the scores [B, n] already.
  CountAbove(const float* scores, int64_t b, int64_t n, const float* thresholds, const int64_t* tie_ids, int64_t c,
             const Seen& seen, int64_t item_offset, int64_t tile);

  int64_t rows() const { return b_; }
  int64_t tasks() const { return user_blocks_ * item_chunks_; }
  void prepare(int64_t row0, int64_t row1);
  void run(int64_t task0, int64_t task1);
  void finish(int64_t row0, int64_t row1, int64_t* out);
  // row * n + item of a score that is NaN, or -1.
  int64_t nan_at() const;

 private:
  void plan(int64_t tile);
  void count_row(int64_t row, const float* scores, int64_t item0, int64_t n, int32_t* scratch);
  Thresholds of_row(int64_t row) const;
  void found_nan(int64_t row, int64_t item);

  Users users_{};
  Items items_{};
  const float* scores_ = nullptr;
  const float* thresholds_;
  const int64_t* tie_ids_;
  int64_t b_, n_, c_;
  Seen seen_;
  int64_t item_offset_;
  int64_t tile_ = 0, chunk_ = 0, user_blocks_ = 0, item_chunks_ = 0, bins_ = 0;
  std::vector<float> sorted_;               // [B, C + 1], and the rest of `Thresholds` for each row
  std::vector<int64_t> sorted_ties_;        // [B, C]
  std::vector<uint16_t> table_;             // [B, bins]
  std::vector<float> low_, scale_;          // [B]
  std::vector<int32_t> order_;              // [B, C] where each sorted threshold came from
  std::vector<std::atomic<int64_t>> hist_;  // [B, C + 1] items by the number of thresholds they come before
  std::atomic<int64_t> nan_at_;
};

// ---- sample ----

// Proposals start .. start + c - 1 of rows [row0, row1), uniform over the unseen items -> out [B, C]; -1 if there is none.
void propose(uint64_t seed, uint32_t step, const int64_t* user_ids, int64_t start, int64_t c, int64_t n_items,
             const Seen& seen, int64_t row0, int64_t row1, int64_t* out);

// Which proposals are accepted for one direction -> out [B, C].
void accept(uint64_t seed, uint32_t step, const int64_t* user_ids, int64_t start, int64_t c, const int64_t* rank_guide,
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

}  // namespace bdkernels::cpu
