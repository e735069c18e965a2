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
  static int64_t count_ge(T a, T b) { return __builtin_popcount(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ)); }
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
