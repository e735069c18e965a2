// Any CPU: std::fma is one rounding everywhere, in hardware or in the C library.
#include "tile.h"

namespace bdkernels::cpu {
namespace {

struct Portable {
  struct T {
    float x[4];
  };
  static constexpr const char* name = "portable";
  static constexpr int64_t lanes = 4;
  static constexpr int rows = 4;
  static T load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static T set(float x) { return {{x, x, x, x}}; }
  static void store(float* p, const T& v) {
    for (int i = 0; i < 4; ++i) p[i] = v.x[i];
  }
  static T fma(const T& a, const T& b, const T& c) {
    T out;
    for (int i = 0; i < 4; ++i) out.x[i] = std::fma(a.x[i], b.x[i], c.x[i]);
    return out;
  }
  static int64_t count_gt(const T& a, const T& b) {
    int64_t count = 0;
    for (int i = 0; i < 4; ++i) count += a.x[i] > b.x[i];
    return count;
  }
  static int64_t count_ge(const T& a, const T& b) {
    int64_t count = 0;
    for (int i = 0; i < 4; ++i) count += a.x[i] >= b.x[i];
    return count;
  }
  static bool any_nan(const T& a) {
    for (int i = 0; i < 4; ++i) {
      if (a.x[i] != a.x[i]) return true;
    }
    return false;
  }
};

}  // namespace

const Simd& portable_simd() {
  static const Simd table = Tile<Portable>::table();
  return table;
}

}  // namespace bdkernels::cpu
