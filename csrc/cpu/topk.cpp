// topk: one streaming pass over the catalog that keeps, for each user, the items that may still be among his k best.
//
// A task is a block of users times a range of items, in ascending order of id. Tiles are packed once and scored for the
// whole block, as in rank; a vector comparison then drops every score that is not above the k-th best of the range so far,
// and nearly all are. What is left is collected as order keys; when twice k are there, the better half stays and raises the
// bar. An equal score that comes later has a higher id, so it never belongs: a strict comparison is the total order.
#include <algorithm>
#include <functional>
#include <limits>

#include "../core/order.h"
#include "kernels.h"
#include "simd/simd.h"

namespace bdkernels::cpu {
namespace {

constexpr int64_t kUserBlock = 64;           // users that share a packed tile
constexpr int64_t kFewUsers = 3;             // up to so many are scored without packing
constexpr int64_t kUserGroup = 24;           // users scored at once: a multiple of every instruction set's rows
constexpr int64_t kPackedFloats = 32 << 10;  // a packed tile: 128 KB, an eighth of a common L2
constexpr int64_t kSample = 128;             // keys that choose a cut, where there are many
constexpr int64_t kSpare = 64;               // room beyond k, where k is small

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The best unseen items of one user in one range of items so far.
struct Best {
  uint64_t* keys;  // room for `capacity`, unordered
  int64_t size;
  float bar;  // at most the k-th best score; NaN until k are there, which no score is at most
  const int64_t* seen;
  const int64_t* seen_end;

  // Ids come in ascending order.
  void take(float score, int64_t id, int64_t k, int64_t capacity) {
    while (seen < seen_end && *seen < id) ++seen;
    if (seen < seen_end && *seen == id) return;
    keys[size++] = order_key(score, id);
    if (size == capacity && capacity > k) raise_bar(k);
  }

  // Keeps the k best, or a few more where a sample of the keys shows a cut that is nearly as good and much cheaper.
  void raise_bar(int64_t k) {
    uint64_t cut;
    if (!sampled_cut(k, &cut)) {
      std::nth_element(keys, keys + k - 1, keys + size, std::greater<>());
      cut = keys[k - 1];
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < size; ++i) {  // no branch: half of the guesses would be wrong
      const uint64_t key = keys[i];
      keys[kept] = key;
      kept += key >= cut;
    }
    size = kept;
    bar = order_score(cut);
  }

  // A key that at least k keys are not below, and not many more.
  bool sampled_cut(int64_t k, uint64_t* cut) const {
    if (size < 8 * kSample) return false;
    uint64_t sample[kSample];
    for (int64_t i = 0; i < kSample; ++i) sample[i] = keys[i * size / kSample];
    std::nth_element(sample, sample + kSample * 3 / 5, sample + kSample, std::greater<>());
    *cut = sample[kSample * 3 / 5];
    const int64_t kept = std::count_if(keys, keys + size, [&](uint64_t key) { return key >= *cut; });
    return k <= kept && kept <= size * 3 / 4;
  }
};

}  // namespace

TopK::TopK(const Users& users, const Items& items, int64_t k, const Seen& seen, int64_t threads, int64_t tile)
    : users_(users), items_(items), k_(k), seen_(seen), nan_at_(-1) {
  const int64_t lanes = simd().lanes;
  if (tile <= 0) tile = std::clamp<int64_t>(kPackedFloats / std::max<int64_t>(1, items.d), 64, 1024);
  tile_ = ceil_div(tile, lanes) * lanes;
  // Equal work for all threads, by users where there are enough of them, else by ranges of items too.
  int64_t blocks = std::max<int64_t>(1, ceil_div(users.n, kUserBlock));
  const int64_t ranges = std::clamp<int64_t>(threads / blocks, 1, ceil_div(items.n, tile_));
  const int64_t together = ceil_div(threads, ranges);
  blocks = ceil_div(blocks, together) * together;
  block_ = std::max<int64_t>(1, ceil_div(users.n, blocks));
  user_blocks_ = ceil_div(users.n, block_);
  range_ = ceil_div(items.n, ranges);
  ranges_ = ceil_div(items.n, range_);
  capacity_ = std::min(range_, 2 * k + kSpare);
  keys_ = std::make_unique_for_overwrite<uint64_t[]>(users.n * ranges_ * capacity_);
  sizes_.resize(users.n * ranges_);
}

void TopK::found_nan(int64_t row, int64_t item) {
  const int64_t here = row * items_.n + item;
  int64_t before = nan_at_.load(std::memory_order_relaxed);
  while ((before < 0 || here < before) && !nan_at_.compare_exchange_weak(before, here)) {
  }
}

void TopK::run(int64_t task0, int64_t task1) {
  const Simd& isa = simd();
  std::vector<float> panels(tile_ * items_.d), bias(tile_), scores(kUserGroup * tile_);
  std::vector<int32_t> hits(tile_);
  std::vector<Best> best(block_);
  for (int64_t task = task0; task < task1; ++task) {
    const int64_t range = task % ranges_, first = range * range_, last = std::min(items_.n, first + range_);
    const int64_t user0 = task / ranges_ * block_, user1 = std::min(users_.n, user0 + block_);
    const bool few = user1 - user0 <= kFewUsers;
    for (int64_t row = user0; row < user1; ++row) {
      const int64_t *begin = seen_.indices + seen_.begin(row), *end = seen_.indices + seen_.end(row);
      best[row - user0] = {keys_.get() + (row * ranges_ + range) * capacity_, 0, std::numeric_limits<float>::quiet_NaN(),
                           std::lower_bound(begin, end, first), end};
    }
    for (int64_t item0 = first; item0 < last; item0 += tile_) {
      const int64_t n = std::min(tile_, last - item0);
      if (!few) isa.pack(items_, item0, n, panels.data(), bias.data());
      for (int64_t group = user0; group < user1; group += kUserGroup) {
        const int64_t rows = std::min(kUserGroup, user1 - group);
        const float* users = users_.data + group * items_.d;
        if (!few) isa.score(users, rows, panels.data(), bias.data(), n, items_.d, scores.data(), tile_);
        for (int64_t r = 0; r < rows; ++r) {
          float* mine = scores.data() + r * tile_;
          if (few) isa.score_one(users + r * items_.d, items_, item0, n, mine);
          Best& b = best[group + r - user0];
          const int64_t found = isa.select(mine, n, b.bar, hits.data());
          for (int64_t h = 0; h < found; ++h) {
            const float score = mine[hits[h]];
            if (score != score) found_nan(group + r, item0 + hits[h]);
            if (!(score <= b.bar)) b.take(score, item0 + hits[h], k_, capacity_);  // the bar may have risen meanwhile
          }
        }
      }
    }
    for (int64_t row = user0; row < user1; ++row) sizes_[row * ranges_ + range] = best[row - user0].size;
  }
}

void TopK::finish(int64_t row0, int64_t row1, float* scores, int64_t* ids) {
  for (int64_t row = row0; row < row1; ++row) {
    uint64_t* const keys = keys_.get() + row * ranges_ * capacity_;
    uint64_t* end = keys;
    for (int64_t range = 0; range < ranges_; ++range) {
      const uint64_t* part = keys + range * capacity_;
      end = std::copy(part, part + sizes_[row * ranges_ + range], end);
    }
    const int64_t found = std::min<int64_t>(k_, end - keys);
    if (end - keys > k_) std::nth_element(keys, keys + k_ - 1, end, std::greater<>());
    std::sort(keys, keys + found, std::greater<>());
    for (int64_t j = 0; j < k_; ++j) {
      scores[row * k_ + j] = j < found ? order_score(keys[j]) : -std::numeric_limits<float>::infinity();
      ids[row * k_ + j] = j < found ? order_id(keys[j]) : -1;
    }
  }
}

}  // namespace bdkernels::cpu
