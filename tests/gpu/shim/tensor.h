// Tensor cores: what cvt and mma.sync of the PTX ISA compute, with fp32 sums one factor after the other.
#pragma once
#include "warp.h"

namespace cusim {

enum class Operand { kTf32, kFloat16, kBfloat16 };

// cvt.rna.tf32.f32: 10 bits of fraction are left; a tie goes away from zero.
inline uint32_t to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return x != x ? bits : (bits + 0x1000u) & ~0x1FFFu;
}

// cvt.rn: a tie goes to the even one.
inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>(x != x ? 0x7FFFu : (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

inline uint16_t to_float16(float x) {
  const float magnitude = std::fabs(x);
  const uint32_t sign = std::bit_cast<uint32_t>(x) >> 16 & 0x8000u;
  if (!(magnitude < 65520.0f)) return static_cast<uint16_t>(sign | (x != x ? 0x7FFFu : 0x7C00u));
  if (magnitude < 0x1p-14f) return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p24f)));
  const uint32_t bits = std::bit_cast<uint32_t>(magnitude);
  return static_cast<uint16_t>(sign | (((bits + 0xFFFu + (bits >> 13 & 1)) >> 13) - (112u << 10)));
}

// The one or two values of a register.
inline float operand(Operand kind, uint32_t word, int i) {
  const uint32_t half = word >> 16 * i & 0xFFFFu;
  if (kind == Operand::kTf32) return std::bit_cast<float>(word & ~0x1FFFu);
  if (kind == Operand::kBfloat16) return std::bit_cast<float>(half << 16);
  const uint32_t rest = half & 0x7FFFu;
  const float magnitude = rest < 0x400u ? static_cast<float>(rest) * 0x1p-24f
                                        : std::bit_cast<float>((rest << 13) + (rest < 0x7C00u ? 0x38000000u : 0x70000000u));
  return half & 0x8000u ? -magnitude : magnitude;
}

// mma.sync.aligned.row.col of m16n8k8 (tf32) or m16n8k16: each lane brings its parts of A [16, K] and B [K, 8], and adds to
// its four of the sums [16, 8]. Rows and columns as the PTX ISA lists them for each element.
inline void mma(Operand kind, const uint32_t (&a)[4], const uint32_t (&b)[2], float* const (&sums)[4], Place at) {
  const auto both = [](uint32_t low, uint32_t high) { return low | uint64_t{high} << 32; };
  uint64_t words[3][32];
  const uint64_t mine[3] = {both(a[0], a[1]), both(a[2], a[3]), both(b[0], b[1])};
  for (int i = 0; i < 3; ++i) {
    const Met met = meet(~0u, mine[i], "mma", at);
    std::memcpy(words[i], met.values, sizeof words[i]);
  }
  const int per_word = kind == Operand::kTf32 ? 1 : 2, depth = 8 * per_word;
  float left[16][16], right[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane >> 2, in_group = lane % 4;
    for (int word = 0; word < 4; ++word) {
      const uint32_t bits = static_cast<uint32_t>(words[word / 2][lane] >> 32 * (word % 2));
      for (int e = 0; e < per_word; ++e) {
        const int row = word % 2 == 0 ? group : group + 8, k = in_group * per_word + e + (word < 2 ? 0 : depth / 2);
        left[row][k] = operand(kind, bits, e);
      }
    }
    for (int word = 0; word < 2; ++word) {
      const uint32_t bits = static_cast<uint32_t>(words[2][lane] >> 32 * word);
      for (int e = 0; e < per_word; ++e) {
        right[in_group * per_word + e + (word == 0 ? 0 : depth / 2)][group] = operand(kind, bits, e);
      }
    }
  }
  const int lane = static_cast<int>(sim.current->id % 32);
  for (int i = 0; i < 4; ++i) {
    const int row = i < 2 ? lane >> 2 : (lane >> 2) + 8, column = lane % 4 * 2 + (i & 1);
    for (int k = 0; k < depth; ++k) *sums[i] = std::fma(left[row][k], right[k][column], *sums[i]);
  }
}

}  // namespace cusim
