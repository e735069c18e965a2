// The total order: higher score first, ties by lower id. A pair is one integer key, and a better pair a larger key.
#pragma once
#include <cstdint>
#include <cstring>

namespace bdkernels {

// Not for NaN; ids below 2^32. Keys of different ids differ, so a selection by key never splits a tie.
inline uint64_t order_key(float score, int64_t id) {
  const float canonical = score + 0.0f;  // makes -0.0 equal to 0.0
  uint32_t bits;
  std::memcpy(&bits, &canonical, 4);
  const uint32_t monotone = bits ^ (bits >> 31 ? 0xFFFFFFFFu : 0x80000000u);
  return uint64_t{monotone} << 32 | ~static_cast<uint32_t>(id);
}

inline float order_score(uint64_t key) {
  const uint32_t monotone = static_cast<uint32_t>(key >> 32);
  const uint32_t bits = monotone ^ (monotone >> 31 ? 0x80000000u : 0xFFFFFFFFu);
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline int64_t order_id(uint64_t key) { return ~static_cast<uint32_t>(key); }

}  // namespace bdkernels
