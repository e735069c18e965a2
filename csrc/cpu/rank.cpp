// rank: one streaming pass over the catalog that counts, for each user, the items before each of his thresholds.
//
// A task is a block of users times a tile of items. The tile is packed once and scored for the whole block, a few users at a
// time, into a buffer that stays in cache; each score then finds its place among the user's sorted thresholds, in a
// histogram that lives as long as the thread stays with the block. Seen items are counted like the others and taken out
// again by the first task of their block: their scores have the same bits there.
#include <algorithm>
#include <vector>

#include "kernels.h"

namespace bdkernels::cpu {
namespace {

constexpr int64_t kUserBlock = 256;          // users that share a packed tile, at most
constexpr int64_t kBlockBytes = 640 << 10;   // of a block's thresholds and histograms, which stay in L2
constexpr int64_t kUserGroup = 24;           // users scored at once: a multiple of every instruction set's rows
constexpr int64_t kLastGroup = 31;           // the last of a block may be so large: a few users alone are slow
constexpr int64_t kPackedFloats = 32 << 10;  // a packed tile: 128 KB, an eighth of a common L2
constexpr int64_t kBlockTile = 1024;         // items of a tile of scores that are there already

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

CountAbove::CountAbove(const Source& source, int64_t b, const Query& query, const Seen& seen, int64_t tile, int64_t* out)
    : from_(source), b_(b), query_(query), seen_(seen), out_(out) {
  const int64_t lanes = simd().lanes;
  const int64_t best = std::clamp<int64_t>(kPackedFloats / std::max<int64_t>(1, from_.items.d), 64, 512);
  if (tile <= 0) tile = from_.scores ? kBlockTile : best;
  tile_ = ceil_div(tile, lanes) * lanes;
  tiles_ = ceil_div(query.n, tile_);
  const int64_t most = std::clamp<int64_t>(kBlockBytes / ThresholdBlock::user_bytes(query.c), 8, kUserBlock);
  user_blocks_ = ceil_div(b_, most);
  user_block_ = user_blocks_ > 0 ? ceil_div(b_, user_blocks_) : 0;
}

void CountAbove::found_nan(int64_t row, int64_t item) {
  const int64_t here = row * query_.n + item;
  int64_t before = nan_at_.load(std::memory_order_relaxed);
  while ((before < 0 || here < before) && !nan_at_.compare_exchange_weak(before, here)) {
  }
}

void CountAbove::run(int64_t task0, int64_t task1) {
  const Simd& isa = simd();
  const bool scored = from_.scores != nullptr;
  const int64_t d = from_.items.d;
  ThresholdBlock block(query_, user_block_);
  std::vector<int32_t> scratch(tile_);
  std::vector<float> panels(scored ? 0 : tile_ * d), bias(scored ? 0 : tile_), scores(scored ? 0 : kLastGroup * tile_);
  const auto count = [&](int64_t row, const float* s, int64_t item0, int64_t n) {
    const int64_t nan = isa.count(s, item0, n, block[row], scratch.data());
    if (nan >= 0) found_nan(row, item0 + nan);
  };
  for (int64_t task = task0; task < task1; ++task) {
    const int64_t row0 = task / tiles_ * user_block_, row1 = std::min(b_, row0 + user_block_);
    const int64_t item0 = task % tiles_ * tile_, n = std::min(tile_, query_.n - item0);
    if (task == task0 || item0 == 0) block.begin(row0, row1);
    if (item0 == 0) {
      for (int64_t row = row0; row < row1; ++row) take_out_seen(row, block[row]);
    }
    if (scored) {
      for (int64_t row = row0; row < row1; ++row) count(row, from_.scores + row * query_.n + item0, item0, n);
    } else {
      isa.pack(from_.items, item0, n, panels.data(), bias.data());
      for (int64_t group = row0, rows; group < row1; group += rows) {
        rows = row1 - group <= kLastGroup ? row1 - group : kUserGroup;
        isa.score(from_.users.data + group * d, rows, panels.data(), bias.data(), n, d, scores.data(), tile_);
        for (int64_t r = 0; r < rows; ++r) count(group + r, scores.data() + r * tile_, item0, n);
      }
    }
    if (task + 1 == task1 || item0 + n == query_.n) block.end(out_);
  }
}

void CountAbove::take_out_seen(int64_t row, const Thresholds& t) const {
  std::vector<int64_t> inside;
  for (int64_t e = seen_.begin(row); e < seen_.end(row); ++e) {
    const int64_t item = seen_.indices[e] - query_.item_offset;
    if (item >= 0 && item < query_.n) inside.push_back(item);
  }
  std::vector<float> scores(inside.size());
  if (from_.scores) {
    for (size_t e = 0; e < inside.size(); ++e) scores[e] = from_.scores[row * query_.n + inside[e]];
  } else if (!inside.empty()) {
    simd().dot(from_.users.data + row * from_.items.d, from_.items, inside.data(), static_cast<int64_t>(inside.size()),
               scores.data());
  }
  for (size_t e = 0; e < inside.size(); ++e) --t.hist[t.find(scores[e], inside[e])];
}

}  // namespace bdkernels::cpu
