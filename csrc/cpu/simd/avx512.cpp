// Compiled with AVX-512F; called only where the CPU has it.
#include <immintrin.h>

#include <limits>

#include "tile.h"

namespace bdkernels::cpu {
namespace {

struct Avx512 {
  using T = __m512;
  static constexpr const char* name = "avx512";
  static constexpr int64_t lanes = 16;
  static constexpr int rows = 8;
  static constexpr int64_t in_registers = 64;
  static T load(const float* p) { return _mm512_loadu_ps(p); }
  static T set(float x) { return _mm512_set1_ps(x); }
  static void store(float* p, T x) { _mm512_storeu_ps(p, x); }
  static T fma(T a, T b, T c) { return _mm512_fmadd_ps(a, b, c); }
  static void store_int(int32_t* p, T x) { _mm512_storeu_si512(p, _mm512_cvttps_epi32(x)); }
  static T sub(T a, T b) { return _mm512_sub_ps(a, b); }
  static T mul(T a, T b) { return _mm512_mul_ps(a, b); }
  static T min(T a, T b) { return _mm512_min_ps(a, b); }
  static T max(T a, T b) { return _mm512_max_ps(a, b); }
  static int64_t count_gt(T a, T b) { return __builtin_popcount(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ)); }

  // Positions of n scores (whole vectors) among a few thresholds t.now, without a table.
  static void search_few(const float* scores, int64_t n, const Thresholds& t, int32_t* out) {
    if (t.c <= 16) {
      search_registers<1>(scores, n, t, out);
    } else if (t.c <= 32) {
      search_registers<2>(scores, n, t, out);
    } else {
      search_registers<4>(scores, n, t, out);
    }
  }

  // Up to R * 16 thresholds in R registers: a binary search by permutes, first among every Rth of them, then between these.
  template <int R>
  static void search_registers(const float* scores, int64_t n, const Thresholds& t, int32_t* out) {
    alignas(64) float padded[R * 16], each[16];
    for (int64_t j = 0; j < R * 16; ++j) padded[j] = j < t.c ? t.now[j] : std::numeric_limits<float>::infinity();
    for (int64_t j = 0; j < 16; ++j) each[j] = padded[(j + 1) * R - 1];
    T all[R];
    for (int r = 0; r < R; ++r) all[r] = load(padded + r * 16);
    const T coarse = load(each), middle = set(each[7]), last = set(padded[R * 16 - 1]);
    for (int64_t i = 0; i < n; i += 16) {
      const T s = load(scores + i);
      __m512i p = _mm512_maskz_set1_epi32(less(middle, s), 8);
      p = step(_mm512_permutexvar_ps(add(p, 3), coarse), s, p, 4);
      p = step(_mm512_permutexvar_ps(add(p, 1), coarse), s, p, 2);
      p = step(_mm512_permutexvar_ps(p, coarse), s, p, 1);
      p = _mm512_slli_epi32(p, R == 1 ? 0 : R == 2 ? 1 : 2);
      for (int half = R / 2; half >= 1; half /= 2) {
        const __m512i j = add(p, half - 1);
        T at = _mm512_permutex2var_ps(all[0], j, all[R > 1]);
        if constexpr (R == 4) {
          at = _mm512_mask_blend_ps(_mm512_test_epi32_mask(j, _mm512_set1_epi32(32)), at,
                                    _mm512_permutex2var_ps(all[2], j, all[3]));
        }
        p = step(at, s, p, half);
      }
      _mm512_storeu_si512(out + i, step(last, s, p, 1));
    }
  }

  static __mmask16 less(T a, T b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static __m512i add(__m512i p, int x) { return _mm512_add_epi32(p, _mm512_set1_epi32(x)); }
  // p + by where the threshold is below the score.
  static __m512i step(T threshold, T s, __m512i p, int by) {
    return _mm512_mask_add_epi32(p, less(threshold, s), p, _mm512_set1_epi32(by));
  }

  static bool any_nan(T a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0; }
  static uint32_t not_le(T a, T b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
  static T zip_low(T a, T b) {
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), b);
  }
  static T zip_high(T a, T b) {
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b);
  }
};

}  // namespace

const Simd& avx512_simd() {
  static const Simd table = Tile<Avx512>::table();
  return table;
}

}  // namespace bdkernels::cpu
