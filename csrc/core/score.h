// The score: one sequential fused multiply-add over the factors, in fp32, that starts at the item's bias.
// Nothing may reorder it: a score has the same bits whatever the tile, the thread count or the instruction set.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace bdkernels {

enum class Dtype : int32_t { kFloat32, kFloat16, kBfloat16 };

struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

BDKERNELS_HD inline float to_float(float x) { return x; }

BDKERNELS_HD inline float to_float(Bfloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

BDKERNELS_HD inline float to_float(Half x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, rest = x.bits & 0x7FFFu;
  if (rest < 0x0400u) {  // zero or subnormal: rest * 2^-24, exact
    const float magnitude = static_cast<float>(rest) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t exponent = rest >= 0x7C00u ? 0x70000000u : 0x38000000u;  // infinity and NaN keep the top exponent
  const uint32_t bits = sign | ((rest << 13) + exponent);
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// Item table of any of the dtypes: [n, d], rows `stride` elements apart.
struct Items {
  const void* data;
  const void* bias;  // [n] of the same dtype, or null
  Dtype dtype;
  int64_t n, d, stride;
};

struct Users {
  const float* data;  // [n, d], rows one after the other
  int64_t n;
};

}  // namespace bdkernels
