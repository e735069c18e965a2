// The stages as the binding calls them: raw device pointers in and out, work queued on a stream, nothing waited for.
#pragma once
#include <cstdint>
#include <vector>

#include "../core/rule.h"
#include "../core/score.h"
#include "../core/seen.h"
#include "../core/step.h"
#include "../core/weight.h"

struct CUstream_st;  // what a cudaStream_t points to: bindings need no CUDA header

namespace bdkernels::cuda {

using Stream = CUstream_st*;

// values: ids [n_ids] and the rows of `seen`, of n_seen items together; either may be null. Of fine [2], not 0 before, the
// first becomes 0 where an id is not in [0, limit), the second where rows are not from 0 to n_seen in their order, or ids in
// a row are not rising from 0 to limit - 1.
void values(const int64_t* ids, int64_t n_ids, int64_t limit, const Seen& seen, int64_t rows, int64_t n_seen, int64_t* fine,
            Stream stream);

// score: [B, C] of listed items, and [B, N] of a block of the catalog
void score(const Users& users, const Items& items, const int64_t* ids, int64_t c, float* out, Stream stream);
void score_block(const Users& users, const Items& items, int64_t blocks, float* out, Stream stream);

// rank: what is counted, and where to
struct Query {
  const int64_t* keys;   // [B, C] order keys of the thresholds, as signed integers, rising in a row
  const int64_t* order;  // [B, C] where each of them was in its row before that was sorted
  int64_t c;
  int64_t item_offset;
  const int64_t* live;  // [] only so many rows need counting; or null for all
  int64_t* histogram;   // [B, C + 1] zeros: += how many items come after exactly so many keys; column 0 is left alone
  int64_t* counts;      // [B, C] = how many items come before each threshold, in the order before the sort; or null
  int64_t* nan_at;      // [] -1, or row * n + item of the first score that is NaN
};

// The keys of thresholds that are to be sorted; ids from 0 to 2^32 - 1.
void order_keys(const float* thresholds, const int64_t* ids, int64_t n, int64_t* keys, Stream stream);

// What factors are rounded to before they are multiplied: not at all, or to operands of tensor cores. Tables of 16 bits are
// multiplied in their own type or exactly.
enum class Precision : int32_t { kIeee, kTf32, kBf16, kFp16 };

// Results do not depend on `blocks`: how many run at once, which says how the items are split (product.h); 0 = ask the GPU.
void count_above(const Users& users, const Items& items, const Query& query, const Seen& seen, Precision precision,
                 int64_t blocks, Stream stream);
void count_above_block(const float* scores, int64_t rows, int64_t n, const Query& query, const Seen& seen, int64_t blocks,
                       Stream stream);

// sample: proposals start .. start + c - 1 of each user -> [B, C] ids, -1 if there is none; and which of them are accepted
void propose(uint64_t seed, uint32_t step, const int64_t* row_keys, int64_t b, int64_t start, int64_t c, int64_t n_items,
             const Seen& seen, int64_t* out, Stream stream);
void accept(uint64_t seed, uint32_t step, const int64_t* row_keys, int64_t b, int64_t start, int64_t c,
            const int64_t* rank_guide, const int64_t* rank_learner, const int64_t* candidates, const Weight& weight,
            bool to_teacher, bool* out, Stream stream);

// sample: proposals start .. stop - 1 of the rows that take some, in place: bdkernels/types/round.py says what each field
// is.
struct Round {
  Users users[2];  // of the teacher and the student, all b rows
  Items items[2];
  Seen seen;
  const int64_t *row_keys, *candidates;  // [b]
  Weight weights[2];                     // to the student, to the teacher
  bool on[2];
  int64_t probe, min_hits, cap;
  const int64_t *seed, *step;  // []
  const int64_t *rows, *live;  // [n_rows], []
  int64_t n_rows, b, k;
  int64_t *ids, *hits;                                   // [2, b, k], [2, b]
  int64_t *next_rows, *next_live, *short_rows, *nan_at;  // [n_rows], [], [], [2]
};

// Of a round, for each model; c = stop - start, at most kMostProposals. Undefined before and after.
struct RoundScratch {
  float* users[2];        // [n_rows, d]
  int64_t* keys[2];       // [n_rows, c]
  uint16_t* order[2];     // [n_rows, c] which of the proposals each key is
  int64_t* histogram[2];  // [n_rows, c + 1]
};
constexpr int64_t kMostProposals = 1024;
void draw_round(const Round& round, const RoundScratch& scratch, int64_t start, int64_t stop, Precision precision,
                int64_t blocks, Stream stream);

// topk: how the catalog is cut into parts, one after the other, and those into ranges, each of which has a block for 64
// users
struct TopKPart {
  int64_t first, last;    // items
  int64_t ranges, range;  // how many, and items in each
};

struct TopKPlan {
  // places: blocks that run at once; first_part: items in it, 0 = chosen. Results do not depend on either.
  TopKPlan(int64_t b, int64_t n, int64_t k, int64_t places, int64_t first_part);

  int64_t user_blocks;
  int64_t capacity;         // keys in a list
  int64_t most_ranges = 0;  // of a part
  std::vector<TopKPart> parts;
};

struct TopKScratch {
  uint64_t* keys;  // [B, most ranges, capacity]
  int* sizes;      // [B, most ranges]
  uint64_t* best;  // [B, k]
};

constexpr int64_t kMostTopK = 2048, kTopKTile = 128;  // items that a block looks at at a time
int64_t topk_places(Dtype items);                     // of the current device

// -> scores and ids [B, k], best first, -inf and -1 where there are too few; where a score is NaN: row * n + item, or -1.
void topk(const Users& users, const Items& items, int64_t k, const Seen& seen, const TopKPlan& plan,
          const TopKScratch& scratch, float* scores, int64_t* ids, int64_t* nan_at, Stream stream);

// loss: what a step gives. item_grad may be null, cf and distill are scratch.
struct StepOut {
  double *cf, *distill;           // [b] sums of each row's terms
  float *cf_loss, *distill_loss;  // [] of the batch
  float *user_grad, *item_grad;   // [b, d], [b, width, d]
  float* slopes;                  // [b, width] of the loss in each score, which is the gradient of a bias
  float* user_rows;               // [b, d] the users' rows as they were, or null
};

// live: [] how many distilled entries count, as step_keys counts them. objective.live is not read.
void fused_gradient(const Rows& users, const Rows& items, const float* bias, const Batch& batch, const Objective& objective,
                    const int64_t* live, const StepOut& out, Stream stream);

// The row that each entry of a batch touches: keys [b * (width + 1)], int64 if `wide`, else int32, of the items id and of
// the users n_items + id; or null, if they are not wanted. counts [2] are ones before; then how many distilled entries
// count, and 0 if an id is out of range.
void step_keys(const Batch& batch, int64_t n_users, int64_t n_items, void* keys, bool wide, int64_t* counts, Stream stream);

// What lr_t of Adam is made of, for the step after `count`: lr sqrt(1 - beta2^t) / (1 - beta1^t), t = count + 1.
struct Rate {
  double lr, beta1, beta2;
  const double *lr_at, *count;  // [] in the place of lr, or null; []
};

void rate(const Rate& of, float* out, Stream stream);

struct Training {
  Trained users, items, bias;  // bias.data may be null
};

// Those keys in their order, and where in the batch each one was: n of both.
struct Touches {
  const void* keys;
  bool wide;
  const int64_t* places;
  int64_t n;
};

constexpr int kPiece = 64;                                   // touches of a row that one warp adds up
constexpr int64_t kMostTouches = (int64_t{1} << 31) - 4096;  // a sort takes no more either, and their numbers are 32-bit

// The step, then the rule on each touched row. lr: [] in the place of the rule's, or null. partials: scratch
// [touches.n / kPiece + 1, d + 1].
void fused_step(const Training& of, const Batch& batch, const Objective& objective, const int64_t* live, const StepOut& out,
                const Rule& rule, const float* lr, const Touches& touches, float* partials, Stream stream);

}  // namespace bdkernels::cuda
