// Compiled with AVX2 and FMA; called only where the CPU has them.
#include <immintrin.h>

#include "tile.h"

namespace bdkernels::cpu {
namespace {

struct Avx2 {
  using T = __m256;
  static constexpr const char* name = "avx2";
  static constexpr int64_t lanes = 8;
  static constexpr int rows = 6;
  static T load(const float* p) { return _mm256_loadu_ps(p); }
  static T set(float x) { return _mm256_set1_ps(x); }
  static void store(float* p, T x) { _mm256_storeu_ps(p, x); }
  static T fma(T a, T b, T c) { return _mm256_fmadd_ps(a, b, c); }
  static void store_int(int32_t* p, T x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_cvttps_epi32(x)); }
  static T add(T a, T b) { return _mm256_add_ps(a, b); }
  // The first n of them, 0 in the other lanes, whose memory is not touched.
  static T load_some(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
  static void store_some(float* p, int64_t n, T x) { _mm256_maskstore_ps(p, first(n), x); }
  static __m256i first(int64_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(n < 0 ? 0 : n < 8 ? n : 8)), lane);
  }
  // Pairwise: lane i and i + 4, then i + 2, then i + 1.
  static float sum(T x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static T sub(T a, T b) { return _mm256_sub_ps(a, b); }
  static T mul(T a, T b) { return _mm256_mul_ps(a, b); }
  static T min(T a, T b) { return _mm256_min_ps(a, b); }
  static T max(T a, T b) { return _mm256_max_ps(a, b); }
  static int64_t count_gt(T a, T b) { return __builtin_popcount(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ))); }
  static bool any_nan(T a) { return _mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)) != 0; }
  static uint32_t eq(T a, T b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
  static uint32_t not_le(T a, T b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLE_UQ)); }
  static T zip_low(T a, T b) { return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20); }
  static T zip_high(T a, T b) { return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31); }
};

}  // namespace

const Simd& avx2_simd() {
  static const Simd table = Tile<Avx2>::table();
  return table;
}

}  // namespace bdkernels::cpu
