// rank: one streaming pass over the catalog that counts, for each user, the items before each of his thresholds.
//
// A task is a block of users times a chunk of items. Tiles of the chunk are packed once and scored for the whole block,
// a few users at a time, into a buffer that stays in cache; each score then finds its bin among the user's sorted
// thresholds. Seen items are counted like the others, and taken out again at the end: their scores have the same bits there.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels.h"
#include "simd/simd.h"

namespace bdkernels::cpu {
namespace {

constexpr int64_t kUserBlock = 64;           // users that share a packed tile
constexpr int64_t kUserGroup = 24;           // users scored at once: a multiple of every instruction set's rows
constexpr int64_t kPackedFloats = 32 << 10;  // a packed tile: 128 KB, an eighth of a common L2
constexpr int64_t kChunkTiles = 16;          // tiles of a task
constexpr int64_t kBinsPerThreshold = 16;    // of the search table: most bins hold one threshold or none
constexpr int64_t kMaxBins = 4096;           // 8 KB a user, which stays in L1 while one of his tiles is searched

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

CountAbove::CountAbove(const Users& users, const Items& items, const float* thresholds, const int64_t* tie_ids, int64_t c,
                       const Seen& seen, int64_t item_offset, int64_t tile)
    : users_(users),
      items_(items),
      thresholds_(thresholds),
      tie_ids_(tie_ids),
      b_(users.n),
      n_(items.n),
      c_(c),
      seen_(seen),
      item_offset_(item_offset),
      hist_(users.n * (c + 1)),
      nan_at_(-1) {
  plan(tile);
}

CountAbove::CountAbove(const float* scores, int64_t b, int64_t n, const float* thresholds, const int64_t* tie_ids, int64_t c,
                       const Seen& seen, int64_t item_offset, int64_t tile)
    : scores_(scores),
      thresholds_(thresholds),
      tie_ids_(tie_ids),
      b_(b),
      n_(n),
      c_(c),
      seen_(seen),
      item_offset_(item_offset),
      hist_(b * (c + 1)),
      nan_at_(-1) {
  plan(tile);
}

void CountAbove::plan(int64_t tile) {
  const int64_t lanes = simd().lanes;
  if (tile <= 0) tile = std::clamp<int64_t>(kPackedFloats / std::max<int64_t>(1, items_.d), 64, 1024);
  tile_ = ceil_div(tile, lanes) * lanes;
  chunk_ = tile_ * kChunkTiles;
  user_blocks_ = ceil_div(b_, kUserBlock);
  item_chunks_ = ceil_div(n_, chunk_);
  bins_ = c_ > kFewThresholds ? std::min(kMaxBins, c_ * kBinsPerThreshold) : 1;
  sorted_.resize(b_ * (c_ + 1));
  table_.resize(b_ * bins_);
  low_.resize(b_);
  scale_.resize(b_);
  sorted_ties_.resize(b_ * c_);
  order_.resize(b_ * c_);
}

void CountAbove::prepare(int64_t row0, int64_t row1) {
  for (int64_t row = row0; row < row1; ++row) {
    const float* t = thresholds_ + row * c_;
    const int64_t* tie = tie_ids_ + row * c_;
    int32_t* order = order_.data() + row * c_;
    std::iota(order, order + c_, 0);
    std::sort(order, order + c_, [&](int32_t a, int32_t b) { return t[a] < t[b] || (t[a] == t[b] && tie[a] > tie[b]); });
    for (int64_t j = 0; j < c_; ++j) {
      sorted_[row * (c_ + 1) + j] = t[order[j]];
      sorted_ties_[row * c_ + j] = tie[order[j]];
    }
    float* sorted = sorted_.data() + row * (c_ + 1);
    sorted[c_] = std::numeric_limits<float>::quiet_NaN();
    if (c_ <= kFewThresholds) continue;
    const float width = sorted[c_ - 1] - sorted[0], scale = static_cast<float>(bins_) / width;
    const bool usable = std::isfinite(width) && std::isfinite(scale);  // else every score falls into bin 0
    low_[row] = usable ? sorted[0] : 0.0f;
    scale_[row] = usable ? scale : 0.0f;
    // A table of 16 bits holds up to 65,535; more thresholds are still right, by a lower bound that is too low.
    const Thresholds mine = of_row(row);
    uint16_t* table = table_.data() + row * bins_;
    int64_t below = 0;
    for (int32_t bin = 0; bin < bins_; ++bin) {
      while (below < c_ && mine.f(sorted[below]) < bin) ++below;
      table[bin] = static_cast<uint16_t>(std::min<int64_t>(below, UINT16_MAX));
    }
  }
}

Thresholds CountAbove::of_row(int64_t row) const {
  return {sorted_.data() + row * (c_ + 1),
          sorted_ties_.data() + row * c_,
          c_,
          table_.data() + row * bins_,
          low_[row],
          scale_[row],
          static_cast<int32_t>(bins_)};
}

void CountAbove::found_nan(int64_t row, int64_t item) {
  const int64_t here = row * n_ + item;
  int64_t before = nan_at_.load(std::memory_order_relaxed);
  while ((before < 0 || here < before) && !nan_at_.compare_exchange_weak(before, here)) {
  }
}

int64_t CountAbove::nan_at() const { return nan_at_.load(); }

void CountAbove::count_row(int64_t row, const float* scores, int64_t item0, int64_t n, int32_t* scratch) {
  std::atomic<int64_t>* hist = hist_.data() + row * (c_ + 1);
  const Thresholds mine = of_row(row);
  int64_t nan;
  if (c_ <= kFewThresholds) {
    int64_t counts[kFewThresholds + 2] = {n};  // falls from n to 0; the histogram is its steps
    nan = simd().count_few(scores, n, mine, item_offset_ + item0, counts + 1);
    counts[c_ + 1] = 0;
    for (int64_t j = 0; j <= c_; ++j) hist[j].fetch_add(counts[j] - counts[j + 1], std::memory_order_relaxed);
  } else {
    const int64_t width = c_ + 1;
    int32_t* bins = scratch + tile_;
    std::fill_n(bins, 4 * width, 0);
    nan = simd().count_many(scores, n, mine, item_offset_ + item0, bins, scratch);
    for (int64_t j = 0; j < width; ++j) {
      const int64_t sum = int64_t{bins[j]} + bins[width + j] + bins[2 * width + j] + bins[3 * width + j];
      if (sum) hist[j].fetch_add(sum, std::memory_order_relaxed);
    }
  }
  if (nan >= 0) found_nan(row, item0 + nan);
}

void CountAbove::run(int64_t task0, int64_t task1) {
  const Simd& isa = simd();
  std::vector<int32_t> scratch(tile_ + 4 * (c_ + 1));
  std::vector<float> panels, bias, scores;
  if (!scores_) {
    panels.resize(tile_ * items_.d);
    bias.resize(tile_);
    scores.resize(kUserGroup * tile_);
  }
  for (int64_t task = task0; task < task1; ++task) {
    const int64_t user0 = task / item_chunks_ * kUserBlock, user1 = std::min(b_, user0 + kUserBlock);
    const int64_t chunk0 = task % item_chunks_ * chunk_, chunk1 = std::min(n_, chunk0 + chunk_);
    for (int64_t item0 = chunk0; item0 < chunk1; item0 += tile_) {
      const int64_t n = std::min(tile_, chunk1 - item0);
      if (scores_) {
        for (int64_t row = user0; row < user1; ++row) count_row(row, scores_ + row * n_ + item0, item0, n, scratch.data());
        continue;
      }
      isa.pack(items_, item0, n, panels.data(), bias.data());
      for (int64_t group = user0; group < user1; group += kUserGroup) {
        const int64_t rows = std::min(kUserGroup, user1 - group);
        isa.score(users_.data + group * items_.d, rows, panels.data(), bias.data(), n, items_.d, scores.data(), tile_);
        for (int64_t r = 0; r < rows; ++r) count_row(group + r, scores.data() + r * tile_, item0, n, scratch.data());
      }
    }
  }
}

void CountAbove::finish(int64_t row0, int64_t row1, int64_t* out) {
  std::vector<int64_t> inside;
  std::vector<float> scores;
  for (int64_t row = row0; row < row1; ++row) {
    std::atomic<int64_t>* hist = hist_.data() + row * (c_ + 1);
    inside.clear();
    for (int64_t e = seen_.begin(row); e < seen_.end(row); ++e) {
      const int64_t item = seen_.indices[e] - item_offset_;
      if (item >= 0 && item < n_) inside.push_back(item);
    }
    if (scores_) {
      scores.clear();
      for (const int64_t item : inside) scores.push_back(scores_[row * n_ + item]);
    } else {
      scores.resize(inside.size());
      if (!inside.empty()) {
        simd().dot(users_.data + row * items_.d, items_, inside.data(), static_cast<int64_t>(inside.size()), scores.data());
      }
    }
    const Thresholds mine = of_row(row);
    for (size_t e = 0; e < inside.size(); ++e) {
      hist[mine.find(scores[e], item_offset_ + inside[e], 0)].fetch_sub(1, std::memory_order_relaxed);
    }
    int64_t above = 0;
    for (int64_t j = c_ - 1; j >= 0; --j) {
      above += hist[j + 1].load(std::memory_order_relaxed);
      out[row * c_ + order_[row * c_ + j]] = above;
    }
  }
}

}  // namespace bdkernels::cpu
