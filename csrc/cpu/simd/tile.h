// The inner loops, written once over a vector type V and compiled once for each instruction set.
// V has: T, name, lanes, rows (users in registers), load, set, store, store_int (truncated), fma, sub, mul, min, max (the
// second argument where the first is NaN), count_gt, count_ge, any_nan.
#pragma once
#include <cmath>
#include <cstdint>

#include "row.h"
#include "simd.h"

namespace bdkernels::cpu {

template <class V>
struct Tile {
  static constexpr int64_t W = V::lanes;

  template <class T>
  static void pack_as(const Items& items, int64_t item0, int64_t n, float* panels, float* bias) {
    const T* data = static_cast<const T*>(items.data);
    const T* b = static_cast<const T*>(items.bias);
    for (int64_t first = 0; first < n; first += W, panels += items.d * W, bias += W) {
      const int64_t live = n - first < W ? n - first : W;
      for (int64_t i = 0; i < live; ++i) {
        const T* row = data + (item0 + first + i) * items.stride;
        for (int64_t k = 0; k < items.d; ++k) panels[k * W + i] = to_float(row[k]);
        bias[i] = b ? to_float(b[item0 + first + i]) : 0.0f;
      }
      for (int64_t i = live; i < W; ++i) {
        for (int64_t k = 0; k < items.d; ++k) panels[k * W + i] = 0.0f;
        bias[i] = 0.0f;
      }
    }
  }

  static void pack(const Items& items, int64_t item0, int64_t n, float* panels, float* bias) {
    switch (items.dtype) {
      case Dtype::kFloat32:
        return pack_as<float>(items, item0, n, panels, bias);
      case Dtype::kFloat16:
        return pack_as<Half>(items, item0, n, panels, bias);
      case Dtype::kBfloat16:
        return pack_as<Bfloat16>(items, item0, n, panels, bias);
    }
  }

  // R users x P panels in registers.
  template <int R, int P>
  static void micro(const float* users, const float* panels, const float* bias, int64_t d, float* out, int64_t out_stride) {
    typename V::T acc[R][P];
    for (int p = 0; p < P; ++p) {
      const auto b = V::load(bias + p * W);
      for (int r = 0; r < R; ++r) acc[r][p] = b;
    }
    for (int64_t k = 0; k < d; ++k) {
      typename V::T item[P];
      for (int p = 0; p < P; ++p) item[p] = V::load(panels + (p * d + k) * W);
      for (int r = 0; r < R; ++r) {
        const auto u = V::set(users[r * d + k]);
        for (int p = 0; p < P; ++p) acc[r][p] = V::fma(u, item[p], acc[r][p]);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int p = 0; p < P; ++p) V::store(out + r * out_stride + p * W, acc[r][p]);
    }
  }

  template <int R, int P>
  static void rows_of(const float* users, const float* panels, const float* bias, int64_t n, int64_t d, float* out,
                      int64_t out_stride) {
    int64_t i = 0;
    for (; i + P * W <= n; i += P * W) micro<R, P>(users, panels + i * d, bias + i, d, out + i, out_stride);
    for (; i < n; i += W) micro<R, 1>(users, panels + i * d, bias + i, d, out + i, out_stride);
  }

  static void score(const float* users, int64_t rows, const float* panels, const float* bias, int64_t n, int64_t d,
                    float* out, int64_t out_stride) {
    int64_t r = 0;
    for (; r + V::rows <= rows; r += V::rows) {
      rows_of<V::rows, 2>(users + r * d, panels, bias, n, d, out + r * out_stride, out_stride);
    }
    for (; r < rows; ++r) rows_of<1, 4>(users + r * d, panels, bias, n, d, out + r * out_stride, out_stride);
  }

  template <class T>
  static void dot_as(const float* user, const Items& items, const int64_t* ids, int64_t n, float* out) {
    constexpr int64_t kTogether = 8;  // chains in flight: a chain alone waits for each addition
    const T* data = static_cast<const T*>(items.data);
    const T* bias = static_cast<const T*>(items.bias);
    for (int64_t first = 0; first < n; first += kTogether) {
      const T* rows[kTogether];
      float acc[kTogether];
      for (int64_t j = 0; j < kTogether; ++j) {
        const int64_t id = ids[first + j < n ? first + j : n - 1];
        rows[j] = data + id * items.stride;
        acc[j] = bias ? to_float(bias[id]) : 0.0f;
      }
      for (int64_t k = 0; k < items.d; ++k) {
        for (int64_t j = 0; j < kTogether; ++j) acc[j] = std::fma(user[k], to_float(rows[j][k]), acc[j]);
      }
      for (int64_t j = 0; j < kTogether && first + j < n; ++j) out[first + j] = acc[j];
    }
  }

  static void dot(const float* user, const Items& items, const int64_t* ids, int64_t n, float* out) {
    switch (items.dtype) {
      case Dtype::kFloat32:
        return dot_as<float>(user, items, ids, n, out);
      case Dtype::kFloat16:
        return dot_as<Half>(user, items, ids, n, out);
      case Dtype::kBfloat16:
        return dot_as<Bfloat16>(user, items, ids, n, out);
    }
  }

  static int64_t count_few(const float* scores, int64_t n, const Thresholds& t, int64_t first_id, int64_t* counts) {
    const int64_t whole = n - n % W;
    for (int64_t j = 0; j < t.c; ++j) {
      const float threshold = t.sorted[j];
      const auto wide = V::set(threshold);
      const int64_t before = t.ties[j] - first_id;  // items 0 .. before - 1 win a tie
      const int64_t ahead = before < 0 ? 0 : before < n ? before : n;
      int64_t count = 0;
      int64_t i = 0;
      // Up to the tie id an equal score counts, after it not: two plain loops, and the vector between them by hand.
      for (; i + W <= ahead; i += W) count += V::count_ge(V::load(scores + i), wide);
      for (; i < n && (i < ahead || i % W); ++i) count += scores[i] > threshold || (i < ahead && scores[i] == threshold);
      for (; i < whole; i += W) count += V::count_gt(V::load(scores + i), wide);
      for (; i < n; ++i) count += scores[i] > threshold;
      counts[j] += count;
    }
    return any_nan(scores, n);
  }

  static int64_t count_many(const float* scores, int64_t n, const Thresholds& t, int64_t first_id, int32_t* hist,
                            int32_t* scratch) {
    const int64_t whole = n - n % W;
    const auto low = V::set(t.low), scale = V::set(t.scale), zero = V::set(0.0f);
    const auto last = V::set(static_cast<float>(t.bins - 1));
    for (int64_t i = 0; i < whole; i += W) {
      const auto x = V::mul(V::sub(V::load(scores + i), low), scale);
      V::store_int(scratch + i, V::min(V::max(x, zero), last));  // max gives 0 for NaN
    }
    for (int64_t i = whole; i < n; ++i) scratch[i] = t.f(scores[i]);
    const int64_t width = t.c + 1;
    for (int64_t i = 0; i < n; ++i) {
      const float s = scores[i];
      int64_t b = t.table[scratch[i]];
      b += t.sorted[b] < s;
      if (__builtin_expect(t.sorted[b] <= s, 0)) b = t.find(s, first_id + i, b);  // a second step, or a tie
      ++hist[(i & 3) * width + b];
    }
    return any_nan(scores, n);
  }

  static int64_t any_nan(const float* scores, int64_t n) {
    const int64_t whole = n - n % W;
    for (int64_t i = 0; i < whole; i += W) {
      if (V::any_nan(V::load(scores + i))) return first_nan(scores, i, n);
    }
    return first_nan(scores, whole, n);
  }

  static int64_t first_nan(const float* scores, int64_t i, int64_t n) {
    for (; i < n; ++i) {
      if (scores[i] != scores[i]) return i;
    }
    return -1;
  }

  static constexpr Simd table() {
    return {V::name, W, pack, score, dot, count_few, count_many, Row<V>::dots, Row<V>::add_rows, Row<V>::update};
  }
};

}  // namespace bdkernels::cpu
