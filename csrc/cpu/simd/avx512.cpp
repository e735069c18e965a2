// Compiled with AVX-512F; called only where the CPU has it.
#include <immintrin.h>

#include "tile.h"

namespace bdkernels::cpu {
namespace {

struct Avx512 {
  using T = __m512;
  static constexpr const char* name = "avx512";
  static constexpr int64_t lanes = 16;
  static constexpr int rows = 8;
  static constexpr int64_t by_levels = 1024;
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

  // Places of n scores (whole vectors) by levels.
  static void search_levels(const float* scores, int64_t n, const Thresholds& t, int32_t* out) {
    constexpr decltype(&search<4>) kSearches[] = {search<4>, search<5>, search<6>, search<7>,
                                                  search<8>, search<9>, search<10>};
    kSearches[t.levels - 4](scores, n, t.now, out);
  }

  template <int L>
  static void search(const float* scores, int64_t n, const float* slots, int32_t* out) {
    for (int64_t i = 0; i < n; i += 16) {
      const T s = load(scores + i);
      __m512i p = _mm512_setzero_si512();
      __mmask16 answers[L];
      steps<0, L>(slots, s, p, answers);
      p = _mm512_mask_add_epi32(p, less(set(slots[0]), s), p, _mm512_set1_epi32(1));
      _mm512_storeu_si512(out + i, p);
    }
  }

  template <int K, int L>
  [[gnu::always_inline]] static void steps(const float* slots, T s, __m512i& p, __mmask16 (&answers)[L]) {
    answers[K] = less(K == 0 ? set(slots[1]) : pick<K>(slots + (1 << K), p, answers), s);
    p = _mm512_mask_or_epi32(p, answers[K], p, _mm512_set1_epi32(1 << K));
    if constexpr (K + 1 < L) steps<K + 1, L>(slots, s, p, answers);
  }

  // values[p] of 2^K, p < 2^K: a permute of 16 or 32, or by its highest bit one of the halves.
  template <int K>
  [[gnu::always_inline]] static T pick(const float* values, __m512i p, const __mmask16* answers) {
    if constexpr (K <= 4) {
      return _mm512_permutexvar_ps(p, load(values));
    } else if constexpr (K == 5) {
      return _mm512_permutex2var_ps(load(values), p, load(values + 16));
    } else {
      constexpr int half = 1 << (K - 1);
      return _mm512_mask_blend_ps(answers[K - 1], pick<K - 1>(values, p, answers), pick<K - 1>(values + half, p, answers));
    }
  }

  static __mmask16 less(T a, T b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static bool any_nan(T a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0; }
  static uint32_t eq(T a, T b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
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
