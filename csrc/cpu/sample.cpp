// sample: proposals and their acceptance. The counts between the two are `rank`'s.
#include <vector>

#include "../core/philox.h"
#include "kernels.h"

namespace bdkernels::cpu {

void propose(uint64_t seed, uint32_t step, const int64_t* row_keys, int64_t start, int64_t c, int64_t n_items,
             const Seen& seen, int64_t row0, int64_t row1, int64_t* out) {
  std::vector<uint32_t> words(4 * c);
  for (int64_t row = row0; row < row1; ++row) {
    const int64_t n = n_items - seen.count(row);
    simd().random(seed, static_cast<uint32_t>(start), kPropose, static_cast<uint64_t>(row_keys[row]), step, c, words.data());
    for (int64_t j = 0; j < c; ++j) {
      out[row * c + j] = n > 0 ? seen.nth_unseen(row, below(words[j], words[c + j], n)) : -1;
    }
  }
}

Accept::Accept(uint64_t seed, uint32_t step, int64_t row_key, const Weight& weight, bool to_teacher, int64_t n)
    : seed(seed),
      step(step),
      row_key(static_cast<uint64_t>(row_key)),
      weight(weight),
      word(to_teacher ? 2 : 0),
      n(n),
      log_max(max_log_weight(weight, n)) {}

bool Accept::operator()(int64_t index, int64_t rank_guide, int64_t rank_learner) const {
  const Words r = philox(seed, static_cast<uint32_t>(index), kAccept, row_key, step);
  return accepts(weight, log_max, rank_guide, rank_learner, n, uniform(r.w[word], r.w[word + 1]));
}

void accept(uint64_t seed, uint32_t step, const int64_t* row_keys, int64_t start, int64_t c, const int64_t* rank_guide,
            const int64_t* rank_learner, const int64_t* candidates, const Weight& weight, bool to_teacher, int64_t row0,
            int64_t row1, bool* out) {
  for (int64_t row = row0; row < row1; ++row) {
    const Accept accepted(seed, step, row_keys[row], weight, to_teacher, candidates[row]);
    for (int64_t j = 0; j < c; ++j) {
      const int64_t at = row * c + j;
      out[at] = accepted(start + j, rank_guide[at], rank_learner[at]);
    }
  }
}

}  // namespace bdkernels::cpu
