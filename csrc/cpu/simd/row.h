// Loops over the d numbers of a row, plain so that the compiler makes vectors of them. Every sum has one order, whatever the
// width of a vector, and no multiply-add is contracted: the same bits in every instruction set.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "../../core/philox.h"
#include "../../core/rule.h"
#include "simd.h"

namespace bdkernels::cpu {

// V makes one copy of the code for each instruction set. Where it can load and store some lanes alone, the numbers that are
// left past whole vectors do not go through memory one by one: a lane that is not loaded adds 0 to a sum, which changes no
// bit of it, since a sum that begins at 0 is never -0.
template <class V>
struct Row {
  static constexpr bool kMasks = requires { V::load_some(nullptr, 0); };

  static void dots(const float* __restrict user, const float* const* rows, int64_t n, int64_t d, float* __restrict out) {
    constexpr int64_t kSums = 16;  // partial sums of a product, then added up pairwise
    if constexpr (kMasks && 2 * V::lanes == kSums) {
      const int64_t whole = d - d % kSums, rest = d - whole;
      const auto user_low = V::load_some(user + whole, rest),
                 user_high = V::load_some(user + whole + V::lanes, rest - V::lanes);
      for (int64_t j = 0; j < n; ++j) {
        const float* row = rows[j];
        auto low = V::set(0), high = V::set(0);
        for (int64_t k = 0; k < whole; k += kSums) {
          low = V::add(low, V::mul(V::load(user + k), V::load(row + k)));
          high = V::add(high, V::mul(V::load(user + k + V::lanes), V::load(row + k + V::lanes)));
        }
        low = V::add(low, V::mul(user_low, V::load_some(row + whole, rest)));
        high = V::add(high, V::mul(user_high, V::load_some(row + whole + V::lanes, rest - V::lanes)));
        out[j] = V::sum(V::add(low, high));
      }
      return;
    }
    for (int64_t j = 0; j < n; ++j) {
      const float* __restrict row = rows[j];
      float sums[kSums] = {};
      const int64_t whole = d - d % kSums;
      for (int64_t k = 0; k < whole; k += kSums) {
        for (int64_t i = 0; i < kSums; ++i) sums[i] += user[k + i] * row[k + i];
      }
      for (int64_t k = whole; k < d; ++k) sums[k - whole] += user[k] * row[k];
      for (int64_t half = kSums / 2; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
      }
      out[j] = sums[0];
    }
  }

  static void add_rows(const float* const* rows, const float* weights, int64_t n, int64_t d, float* __restrict out) {
    constexpr int64_t kBlock = 16;  // two blocks of sums stay in registers over all rows
    int64_t k = 0;
    if constexpr (kMasks) {
      for (; k < d; k += 4 * V::lanes) {
        const int64_t vectors = (d - k + V::lanes - 1) / V::lanes;
        constexpr decltype(&add_block<1>) kBlocks[] = {add_block<1>, add_block<2>, add_block<3>, add_block<4>};
        kBlocks[std::min<int64_t>(vectors, 4) - 1](rows, weights, n, k, d, out);
      }
      return;
    }
    for (; k + 2 * kBlock <= d; k += 2 * kBlock) {
      float low[kBlock], high[kBlock];
      for (int64_t i = 0; i < kBlock; ++i) low[i] = out[k + i];
      for (int64_t i = 0; i < kBlock; ++i) high[i] = out[k + kBlock + i];
      for (int64_t j = 0; j < n; ++j) {
        const float weight = weights[j];
        const float* row = rows[j] + k;
        for (int64_t i = 0; i < kBlock; ++i) low[i] += weight * row[i];
        for (int64_t i = 0; i < kBlock; ++i) high[i] += weight * row[kBlock + i];
      }
      for (int64_t i = 0; i < kBlock; ++i) out[k + i] = low[i];
      for (int64_t i = 0; i < kBlock; ++i) out[k + kBlock + i] = high[i];
    }
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t i = k; i < d; ++i) out[i] += weights[j] * rows[j][i];
    }
  }

  // `add_rows` for the numbers from k on: N vectors, the last of which may end before its lanes do.
  template <int N>
  static void add_block(const float* const* rows, const float* weights, int64_t n, int64_t k, int64_t d,
                        float* __restrict out) {
    const int64_t last = (N - 1) * V::lanes, in_last = d - k - last;
    typename V::T sums[N];
    for (int v = 0; v < N - 1; ++v) sums[v] = V::load(out + k + v * V::lanes);
    sums[N - 1] = V::load_some(out + k + last, in_last);
    for (int64_t j = 0; j < n; ++j) {
      const auto weight = V::set(weights[j]);
      const float* row = rows[j] + k;
      for (int v = 0; v < N - 1; ++v) sums[v] = V::add(sums[v], V::mul(weight, V::load(row + v * V::lanes)));
      sums[N - 1] = V::add(sums[N - 1], V::mul(weight, V::load_some(row + last, in_last)));
    }
    for (int v = 0; v < N - 1; ++v) V::store(out + k + v * V::lanes, sums[v]);
    V::store_some(out + k + last, in_last, sums[N - 1]);
  }

  // See Simd::exps.
  static Exps exps(const float* x, int64_t n, float tau, float* out) {
    constexpr int64_t kBlock = 16;  // partial results, then gathered pairwise
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    float part[kBlock], tops[kBlock], sums[kBlock] = {};
    std::fill_n(tops, kBlock, kNone);
    const int64_t whole = n - n % kBlock;
    for (int64_t k = 0; k < whole; k += kBlock) {
      for (int64_t i = 0; i < kBlock; ++i) tops[i] = x[k + i] > tops[i] ? x[k + i] : tops[i];
    }
    for (int64_t k = whole; k < n; ++k) tops[k - whole] = std::max(tops[k - whole], x[k]);
    for (int64_t half = kBlock / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) tops[i] = std::max(tops[i], tops[i + half]);
    }
    const float top = tops[0];
    for (int64_t k = 0; k < whole; k += kBlock) {
      for (int64_t i = 0; i < kBlock; ++i) part[i] = exp_of_negative((x[k + i] - top) / tau);
      for (int64_t i = 0; i < kBlock; ++i) out[k + i] = part[i];
      for (int64_t i = 0; i < kBlock; ++i) sums[i] += part[i];
    }
    std::fill_n(part, kBlock, kNone);
    for (int64_t k = whole; k < n; ++k) part[k - whole] = (x[k] - top) / tau;
    for (int64_t i = 0; i < kBlock; ++i) part[i] = exp_of_negative(part[i]);
    for (int64_t k = whole; k < n; ++k) out[k] = part[k - whole];
    for (int64_t i = 0; i < kBlock; ++i) sums[i] += part[i];
    for (int64_t half = kBlock / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    return {top, sums[0]};
  }

  // exp(x) for x <= 0: 2^n times the Taylor series of exp(r), r = x - n log(2), which is at most log(2) / 2 in size, so that
  // its eighth term is below half a unit in the last place. Branches would keep it from becoming vectors.
  static float exp_of_negative(float x) {
    constexpr float kRound = 0x1.8p23f;  // added to a small number, it leaves the nearest integer in the last bits
    const float shifted = x * 0x1.715476p0f + kRound, n = shifted - kRound;
    const float r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;  // n times the first part of log(2) is exact
    float y = 1.0f / 5040;
    for (const float each : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) y = y * r + each;
    const float power = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) << 23) + (127u << 23));
    return x < -87 ? 0 : y * power;
  }

  static void update(const Rule& rule, const float* __restrict grad, int64_t d, float* __restrict row,
                     float* __restrict first, float* __restrict second) {
    const auto [kind, lr, decay, new1, new2, eps] = rule;
    switch (kind) {
      case RuleKind::kSgd:
        for (int64_t k = 0; k < d; ++k) row[k] -= lr * (grad[k] + decay * row[k]);
        return;
      case RuleKind::kAdagrad:
        for (int64_t k = 0; k < d; ++k) {
          const float g = grad[k] + decay * row[k];
          first[k] += g * g;
          row[k] -= lr * (g / (std::sqrt(first[k]) + eps));
        }
        return;
      case RuleKind::kAdam:
        for (int64_t k = 0; k < d; ++k) {
          const float g = grad[k] + decay * row[k];
          first[k] += new1 * (g - first[k]);
          second[k] += new2 * (g * g - second[k]);
          row[k] -= lr * (first[k] / (std::sqrt(second[k]) + eps));
        }
        return;
    }
  }

  static void random(uint64_t seed, uint32_t index, uint32_t stream, uint64_t row_key, uint32_t step, int64_t n,
                     uint32_t* __restrict out) {
    for (int64_t i = 0; i < n; ++i) {
      const Words r = philox(seed, index + static_cast<uint32_t>(i), stream, row_key, step);
      for (int w = 0; w < 4; ++w) out[w * n + i] = r.w[w];
    }
  }
};

}  // namespace bdkernels::cpu
