#include "thresholds.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>

#include "../core/order.h"

namespace bdkernels::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The next float towards -infinity, which is its own.
float next_below(float x) {
  if (x == 0.0f) return -std::numeric_limits<float>::denorm_min();
  if (x == -kInfinity) return x;
  return score_of(order_bits(x) - 1);
}

int levels_for(int64_t c) {
  const bool some = c > Thresholds::kFew && c <= simd().by_levels;
  return some ? std::max(4, static_cast<int>(std::bit_width(static_cast<uint64_t>(c - 1)))) : 0;
}

int64_t bins_for(int64_t c) {
  const bool none = c <= Thresholds::kFew || levels_for(c) > 0;
  return none ? 0 : std::min(Thresholds::kMaxBins, c * Thresholds::kBinsEach);
}

int64_t slots_for(int64_t c) {  // the last level's, and what a load of a whole vector reads after a small level
  const int levels = levels_for(c);
  return levels > 0 ? (int64_t{1} << levels) + 16 : c + 1;
}

int64_t width_for(int64_t c) {
  const int levels = levels_for(c);
  return levels > 0 ? (int64_t{1} << levels) + 1 : c + 1;
}

// The lowest k bits of x, the lowest first.
int64_t reversed(int64_t x, int k) {
  int64_t out = 0;
  for (int i = 0; i < k; ++i) out |= (x >> i & 1) << (k - 1 - i);
  return out;
}

// Where a binary search of 2^levels - 1 thresholds in `levels` steps meets threshold j.
int64_t slot_of(int64_t j, int levels) {
  if (j + 1 == int64_t{1} << levels) return 0;
  const int odd = std::countr_zero(static_cast<uint64_t>(j + 1)), level = levels - 1 - odd;
  return (int64_t{1} << level) + reversed((j + 1) >> (odd + 1), level);
}

int64_t place_of(int64_t j, int levels) { return j == int64_t{1} << levels ? j : reversed(j, levels); }

// Bins from the threshold `edge` to the one as far from the end.
void set_bins(Thresholds& t, int64_t edge) {
  const float low = t.at[edge], width = t.at[t.c - 1 - edge] - low, scale = static_cast<float>(t.bins) / width;
  const bool usable = std::isfinite(width) && std::isfinite(scale);  // else every score falls into bin 0
  t.low = usable ? low : 0.0f;
  t.scale = usable ? scale : 0.0f;
}

// How many thresholds share a bin with the one below: about the part of the scores that need more than one comparison.
int64_t crowded(const Thresholds& t) {
  int64_t n = 0;
  for (int64_t k = 1; k < t.c; ++k) n += t.bin(t.at[k]) == t.bin(t.at[k - 1]);
  return n;
}

void fill_table(Thresholds& t, uint16_t* table) {
  // One far threshold must not crowd all others into a few bins: where it would, the edge bins take the outermost.
  set_bins(t, t.c / 64);
  const int64_t inner = crowded(t);
  set_bins(t, 0);
  if (inner < crowded(t)) set_bins(t, t.c / 64);
  int32_t next = 0;
  for (int64_t k = 0; k <= t.c; ++k) {
    const int32_t last = k < t.c ? t.bin(t.at[k]) : t.bins - 1;
    if (last < next) continue;
    // 15 bits hold up to 32,767; more thresholds are still right, by a lower bound that is too low.
    std::fill(table + next, table + last + 1, static_cast<uint16_t>(k < Thresholds::kMore ? k : UINT16_MAX));
    if (k + 1 < t.c) {  // is the next threshold in one of these bins too, at one of the two places that it can take?
      for (int32_t b = std::max(next, t.bin(next_below(t.at[k + 1]))); b <= last; ++b) table[b] |= Thresholds::kMore;
    }
    next = last + 1;
  }
}

// Sorts keys whose low halves are in order: by the bytes of the high half, the lowest first.
void sort_stably(std::vector<uint64_t>& keys, std::vector<uint64_t>& spare) {
  if (keys.size() < 64) return std::sort(keys.begin(), keys.end());
  for (int shift = 32; shift < 64; shift += 8) {
    int32_t at[257] = {};
    for (const uint64_t key : keys) ++at[(key >> shift & 255) + 1];
    for (int byte = 0; byte < 255; ++byte) at[byte + 1] += at[byte];
    for (const uint64_t key : keys) spare[at[key >> shift & 255]++] = key;
    keys.swap(spare);
  }
}

}  // namespace

ThresholdBlock::ThresholdBlock(const Query& query, int64_t users)
    : query_(query),
      levels_(levels_for(query.c)),
      bins_(bins_for(query.c)),
      slots_(slots_for(query.c)),
      width_(width_for(query.c)) {
  const int64_t c = query.c;
  for (int64_t j = 0; j < c; ++j) slot_.push_back(static_cast<int32_t>(levels_ ? slot_of(j, levels_) : j));
  for (int64_t j = 0; j <= c; ++j) place_.push_back(static_cast<int32_t>(levels_ ? place_of(j, levels_) : j));
  at_.resize(users * c);
  ahead_.resize(users * c);
  ties_.resize(users * c);
  order_.resize(users * c);
  now_.assign(users * slots_, kInfinity);
  table_.resize(users * bins_);
  hist_.resize(users * Thresholds::histograms(c) * width_);
  of_.resize(users);
  keys_.resize(c);
  spare_.resize(c);
}

int64_t ThresholdBlock::user_bytes(int64_t c) {
  return 2 * bins_for(c) + 4 * slots_for(c) + 4 * Thresholds::histograms(c) * width_for(c);
}

void ThresholdBlock::begin(int64_t row0, int64_t row1) {
  row0_ = row0;
  row1_ = row1;
  std::fill(hist_.begin(), hist_.end(), 0);
  for (int64_t row = row0; row < row1; ++row) prepare(row);
}

void ThresholdBlock::prepare(int64_t row) {
  const int64_t c = query_.c, u = row - row0_;
  const float* t = query_.thresholds + row * c;
  const auto wins_of = [&](int64_t j) {
    return static_cast<int32_t>(std::clamp<int64_t>(query_.tie_ids[row * c + j] - query_.item_offset, 0, query_.n));
  };
  const auto low_half = [](uint64_t key) { return static_cast<int32_t>(key); };
  for (int64_t j = 0; j < c; ++j) keys_[j] = uint64_t{order_bits(t[j])} << 32 | static_cast<uint32_t>(j);
  sort_stably(keys_, spare_);
  for (int64_t k = 0, last; k < c; k = last) {  // equal scores: by falling number of ties that are won
    for (last = k + 1; last < c && keys_[last] >> 32 == keys_[k] >> 32;) ++last;
    if (last - k == 1) continue;
    std::sort(keys_.begin() + k, keys_.begin() + last,
              [&](uint64_t a, uint64_t b) { return wins_of(low_half(a)) > wins_of(low_half(b)); });
  }
  float *at = at_.data() + u * c, *now = now_.data() + u * slots_;
  int32_t *ahead = ahead_.data() + u * c, *order = order_.data() + u * c;
  for (int64_t k = 0; k < c; ++k) {
    order[k] = low_half(keys_[k]);
    at[k] = t[order[k]];
    ahead[k] = wins_of(order[k]);
    now[slot_[k]] = next_below(at[k]);
    keys_[k] = uint64_t{static_cast<uint32_t>(ahead[k])} << 32 | static_cast<uint32_t>(k);
  }
  sort_stably(keys_, spare_);
  Tie* ties = ties_.data() + u * c;
  for (int64_t k = 0; k < c; ++k) {
    const int32_t j = low_half(keys_[k]);
    ties[k] = {ahead[j], at[j], slot_[j], j};
  }
  Thresholds& mine = of_[u];
  mine.c = c;
  mine.at = at;
  mine.ahead = ahead;
  mine.ties = ties;
  mine.now = now;
  mine.settled = 0;
  mine.slot = slot_.data();
  mine.hist = hist_.data() + u * Thresholds::histograms(c) * width_;
  mine.width = width_;
  mine.place = place_.data();
  mine.levels = levels_;
  mine.table = table_.data() + u * bins_;
  mine.bins = static_cast<int32_t>(bins_);
  mine.lowest = c > 0 && at[0] == -kInfinity;
  if (bins_ > 0) fill_table(mine, table_.data() + u * bins_);
}

void ThresholdBlock::end(int64_t* out) const {
  const int64_t c = query_.c;
  for (int64_t row = row0_; row < row1_; ++row) {
    const Thresholds& mine = of_[row - row0_];
    const int32_t* order = order_.data() + (row - row0_) * c;
    int64_t above = 0;
    for (int64_t k = c - 1; k >= 0; --k) {
      for (int64_t copy = 0; copy < Thresholds::histograms(c); ++copy) above += mine.hist[copy * width_ + place_[k + 1]];
      if (above) std::atomic_ref(out[row * c + order[k]]).fetch_add(above, std::memory_order_relaxed);
    }
  }
}

}  // namespace bdkernels::cpu
