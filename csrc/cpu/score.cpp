// score: listed items, and blocks of the catalog. Same bits either way (core/score.h).
#include <algorithm>
#include <vector>

#include "kernels.h"
#include "simd/simd.h"

namespace bdkernels::cpu {

void score(const Users& users, const Items& items, const int64_t* ids, int64_t c, int64_t row0, int64_t row1, float* out) {
  for (int64_t row = row0; row < row1; ++row) {
    simd().dot(users.data + row * items.d, items, ids + row * c, c, out + row * c);
  }
}

void score_block(const Users& users, const Items& items, int64_t item0, int64_t item1, float* out) {
  constexpr int64_t kTile = 256, kGroup = 24;  // a group of users is a multiple of every instruction set's rows
  const Simd& isa = simd();
  std::vector<float> panels(kTile * items.d), bias(kTile), scores(kGroup * kTile);
  for (int64_t first = item0; first < item1; first += kTile) {
    const int64_t n = std::min(kTile, item1 - first);
    isa.pack(items, first, n, panels.data(), bias.data());
    for (int64_t group = 0; group < users.n; group += kGroup) {
      const int64_t rows = std::min(kGroup, users.n - group);
      isa.score(users.data + group * items.d, rows, panels.data(), bias.data(), n, items.d, scores.data(), kTile);
      for (int64_t r = 0; r < rows; ++r) std::copy_n(scores.data() + r * kTile, n, out + (group + r) * items.n + first);
    }
  }
}

}  // namespace bdkernels::cpu
