// The total order: higher score first, ties by lower id. A pair is one integer key, and a better pair a larger key.
#pragma once
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace bdkernels {

// Integers in the order of the scores; -0.0 is equal to 0.0. Not for NaN.
BDKERNELS_HD inline uint32_t order_bits(float score) {
  const float canonical = score + 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &canonical, 4);
  return bits ^ (bits >> 31 ? 0xFFFFFFFFu : 0x80000000u);
}

BDKERNELS_HD inline float score_of(uint32_t order_bits) {
  const uint32_t bits = order_bits ^ (order_bits >> 31 ? 0x80000000u : 0xFFFFFFFFu);
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// Ids below 2^32. Keys of different ids differ, so a selection by key never splits a tie.
BDKERNELS_HD inline uint64_t order_key(float score, int64_t id) {
  return uint64_t{order_bits(score)} << 32 | ~static_cast<uint32_t>(id);
}

BDKERNELS_HD inline float order_score(uint64_t key) { return score_of(static_cast<uint32_t>(key >> 32)); }

BDKERNELS_HD inline int64_t order_id(uint64_t key) { return ~static_cast<uint32_t>(key); }

}  // namespace bdkernels
