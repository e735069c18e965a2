// The sampler's last resort, for users of whom too few proposals are accepted: ranks of all items under both models, by a
// radix sort each, and draws by inversion of the cumulative weights. 24 bytes an item and thread.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "../core/order.h"
#include "../core/philox.h"
#include "sampler.h"

namespace bdkernels::cpu {
namespace {

struct Entry {
  uint32_t key, item;  // keys rise as scores fall
};

// Sorts by key, entries with equal keys in the order that they had: three passes of 11 bits. Returns where the result is.
Entry* radix_sort(Entry* from, Entry* to, int64_t n) {
  constexpr int kBits = 11, kPasses = 3;
  constexpr uint32_t kMask = (1u << kBits) - 1;
  std::vector<int64_t> starts(kPasses << kBits, 0);
  for (int64_t i = 0; i < n; ++i) {
    for (int p = 0; p < kPasses; ++p) ++starts[(p << kBits) + (from[i].key >> (p * kBits) & kMask)];
  }
  for (int p = 0; p < kPasses; ++p) {
    int64_t* start = starts.data() + (p << kBits);
    for (int64_t b = 0, sum = 0; b <= kMask; ++b) sum += std::exchange(start[b], sum);
    for (int64_t i = 0; i < n; ++i) to[start[from[i].key >> (p * kBits) & kMask]++] = from[i];
    std::swap(from, to);
  }
  return from;
}

}  // namespace

// One thread's work space.
struct Sampler::FullRow {
  explicit FullRow(const Sampler& sampler) : s(sampler), n(s.counted_items(0).n), entries(2 * n), is_seen(n) {
    for (auto& r : ranks) r.resize(n);
  }

  // Ranks of all counted items under one model: right for unseen ones, anything for seen ones. Returns one of them whose
  // score is NaN, or -1.
  int64_t rank(int model, int64_t row) {
    const Items& items = s.counted_items(model);
    const float* user = s.models[model].users.data + row * items.d;
    const Simd& isa = simd();
    const int64_t tile = 64 * isa.lanes;
    std::vector<float> panels(tile * items.d), bias(tile), scores(tile);
    for (int64_t first = 0; first < n; first += tile) {
      const int64_t count = std::min(tile, n - first);
      isa.pack(items, first, count, panels.data(), bias.data());
      isa.score(user, 1, panels.data(), bias.data(), count, items.d, scores.data(), tile);
      for (int64_t i = 0; i < count; ++i) {
        if (std::isnan(scores[i])) return first + i;
        entries[first + i] = {~order_bits(scores[i]), static_cast<uint32_t>(first + i)};
      }
    }
    const Entry* sorted = radix_sort(entries.data(), entries.data() + n, n);
    int64_t above = 0;
    for (int64_t i = 0; i < n; ++i) {
      ranks[model][sorted[i].item] = static_cast<int32_t>(1 + s.scaled(row, above));
      above += !is_seen[sorted[i].item];
    }
    return -1;
  }

  Nan draw(int64_t row) {
    std::fill(is_seen.begin(), is_seen.end(), false);
    const Seen& seen = s.counted_seen();
    for (int64_t e = seen.begin(row); e < seen.end(row); ++e) is_seen[seen.indices[e]] = true;
    for (int m = 0; m < 2; ++m) {
      if (const int64_t item = rank(m, row); item >= 0) return {m, row, s.id_of(item)};
    }
    for (int to_teacher = 0; to_teacher < 2; ++to_teacher) {
      if (s.lacks(to_teacher, row)) draw(to_teacher, row);
    }
    return {-1, 0, 0};
  }

  void draw(int to_teacher, int64_t row) {
    const Direction& d = s.directions[to_teacher];
    const std::vector<int32_t>&guide = ranks[to_teacher], &learner = ranks[1 - to_teacher];
    const int64_t candidates = s.unseen(row);
    static_assert(sizeof(Entry) == sizeof(double));
    double* cumulative = reinterpret_cast<double*>(entries.data());  // the entries are done with
    double top = -std::numeric_limits<double>::infinity();
    for (int64_t i = 0; i < n; ++i) {
      const int64_t delta = int64_t{guide[i]} - learner[i];
      cumulative[i] = is_seen[i] ? -std::numeric_limits<double>::infinity()
                                 : log_weight(d.weight, d.weight.flipped ? -delta : delta, candidates, guide[i]);
      top = std::max(top, cumulative[i]);
    }
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double weight = std::exp(cumulative[i] - top);
      cumulative[i] = total += weight > 0 ? weight : 0;  // NaN: no weight anywhere
    }
    if (!(total > 0)) return;
    const int64_t last =
        std::lower_bound(cumulative, cumulative + n, total) - cumulative;  // u * total may round up to total
    for (int64_t& have = d.hits[row]; have < s.k; ++have) {
      const Words r = philox(s.seed, static_cast<uint32_t>(have), kFullRow, static_cast<uint64_t>(s.row_keys[row]), s.step);
      const double u = to_teacher ? uniform(r.w[2], r.w[3]) : uniform(r.w[0], r.w[1]);
      const int64_t at = std::upper_bound(cumulative, cumulative + n, u * total) - cumulative;
      d.ids[row * s.k + have] = s.id_of(std::min(at, last));
    }
  }

  const Sampler& s;
  int64_t n;
  std::vector<Entry> entries;
  std::vector<int32_t> ranks[2];  // under the teacher and the student
  std::vector<bool> is_seen;
};

Sampler::Nan Sampler::full_rows() const {
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < models[0].users.n; ++row) {
    if (unseen(row) > 0 && (lacks(0, row) || lacks(1, row))) rows.push_back(row);
  }
  std::vector<Nan> nans(rows.size(), Nan{-1, 0, 0});
  parallel(static_cast<int64_t>(rows.size()), 1, [&](int64_t a, int64_t b) {
    FullRow full(*this);
    for (int64_t r = a; r < b; ++r) nans[r] = full.draw(rows[r]);
  });
  const auto bad = std::find_if(nans.begin(), nans.end(), [](const Nan& nan) { return nan.model >= 0; });
  return bad == nans.end() ? Nan{-1, 0, 0} : *bad;
}

}  // namespace bdkernels::cpu
