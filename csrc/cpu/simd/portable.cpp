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
  template <class F>
  static T map(F f) {
    T out;
    for (int i = 0; i < lanes; ++i) out.x[i] = f(i);
    return out;
  }
  template <class F>
  static int64_t count(F f) {
    int64_t n = 0;
    for (int i = 0; i < lanes; ++i) n += f(i);
    return n;
  }
  static T load(const float* p) {
    return map([=](int i) { return p[i]; });
  }
  static T set(float x) {
    return map([=](int) { return x; });
  }
  static void store(float* p, const T& a) {
    for (int i = 0; i < lanes; ++i) p[i] = a.x[i];
  }
  static void store_int(int32_t* p, const T& a) {
    for (int i = 0; i < lanes; ++i) p[i] = static_cast<int32_t>(a.x[i]);
  }
  static T fma(const T& a, const T& b, const T& c) {
    return map([&](int i) { return std::fma(a.x[i], b.x[i], c.x[i]); });
  }
  static T sub(const T& a, const T& b) {
    return map([&](int i) { return a.x[i] - b.x[i]; });
  }
  static T mul(const T& a, const T& b) {
    return map([&](int i) { return a.x[i] * b.x[i]; });
  }
  static T min(const T& a, const T& b) {
    return map([&](int i) { return a.x[i] < b.x[i] ? a.x[i] : b.x[i]; });
  }
  static T max(const T& a, const T& b) {
    return map([&](int i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; });
  }
  static int64_t count_gt(const T& a, const T& b) {
    return count([&](int i) { return a.x[i] > b.x[i]; });
  }
  static bool any_nan(const T& a) {
    return count([&](int i) { return a.x[i] != a.x[i]; }) > 0;
  }
  static uint32_t eq(const T& a, const T& b) {
    uint32_t bits = 0;
    for (int i = 0; i < lanes; ++i) bits |= static_cast<uint32_t>(a.x[i] == b.x[i]) << i;
    return bits;
  }
  static uint32_t not_le(const T& a, const T& b) {
    uint32_t bits = 0;
    for (int i = 0; i < lanes; ++i) bits |= static_cast<uint32_t>(!(a.x[i] <= b.x[i])) << i;
    return bits;
  }
  static T zip_low(const T& a, const T& b) { return {{a.x[0], b.x[0], a.x[1], b.x[1]}}; }
  static T zip_high(const T& a, const T& b) { return {{a.x[2], b.x[2], a.x[3], b.x[3]}}; }
};

}  // namespace

const Simd& portable_simd() {
  static const Simd table = Tile<Portable>::table();
  return table;
}

}  // namespace bdkernels::cpu
