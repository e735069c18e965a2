// Philox4x32-10, the counter-based random numbers of every draw (Salmon, Moraes, Dror, Shaw, SC 2011).
// A draw is a pure function of (seed, index, stream, row key, step): no state, no order, nothing to split. The lower half of
// a row's key is its user, the upper half is mixed into the stream; bdkernels/sampling/keys.py makes keys.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace bdkernels {

// Streams of random numbers; the same in bdkernels/backends/reference.py.
enum Stream : uint32_t { kPropose = 0, kAccept = 1, kFullRow = 2 };

struct Words {
  uint32_t w[4];
};

BDKERNELS_HD inline Words philox(uint64_t seed, uint32_t index, uint32_t stream, uint64_t row_key, uint32_t step) {
  uint32_t c0 = index, c1 = stream | static_cast<uint32_t>(row_key >> 32), c2 = static_cast<uint32_t>(row_key), c3 = step;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c0, p1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// floor(64 random bits * n / 2^64) for n < 2^31: uniform in [0, n), off by less than n / 2^64.
BDKERNELS_HD inline int64_t below(uint32_t hi, uint32_t lo, int64_t n) {
  const uint64_t m = static_cast<uint64_t>(n);
  return static_cast<int64_t>((hi * m + (lo * m >> 32)) >> 32);
}

// Uniform in (0, 1), never 0 or 1, from the upper 52 of 64 random bits.
BDKERNELS_HD inline double uniform(uint32_t hi, uint32_t lo) {
  return (static_cast<double>(uint64_t{hi} << 20 | lo >> 12) + 0.5) * 0x1p-52;
}

}  // namespace bdkernels
