// The inner loops, written once over a vector type V and compiled once for each instruction set.
// V has: T, name, lanes, rows (users in registers), load, set, store, store_int (truncated), fma, sub, mul, min, max (the
// second argument where the first is NaN), count_gt, any_nan, eq and not_le (a bit for each lane), zip_low, zip_high;
// and by_levels, search_levels where it can permute as it likes.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "row.h"
#include "simd.h"

namespace bdkernels::cpu {

template <class V>
struct Tile {
  static constexpr int64_t W = V::lanes;

  static typename V::T widen(const float* p) { return V::load(p); }

  template <class T>
  static typename V::T widen(const T* p) {
    float wide[W];
    for (int64_t i = 0; i < W; ++i) wide[i] = to_float(p[i]);
    return V::load(wide);
  }

  // W rows of W columns: after log2(W) perfect shuffles of the rows, each is a column.
  static void transpose(typename V::T (&x)[W]) {
    for (int64_t step = 1; step < W; step *= 2) {
      typename V::T y[W];
      for (int64_t i = 0; i < W / 2; ++i) {
        y[2 * i] = V::zip_low(x[i], x[i + W / 2]);
        y[2 * i + 1] = V::zip_high(x[i], x[i + W / 2]);
      }
      for (int64_t i = 0; i < W; ++i) x[i] = y[i];
    }
  }

  template <class T>
  static void pack_as(const Items& items, int64_t item0, int64_t n, float* panels, float* bias) {
    const T* data = static_cast<const T*>(items.data);
    const T* b = static_cast<const T*>(items.bias);
    const int64_t d = items.d;
    for (int64_t first = 0; first < n; first += W, panels += d * W, bias += W) {
      const int64_t live = n - first < W ? n - first : W;
      const T* row = data + (item0 + first) * items.stride;
      for (int64_t i = 0; i < W; ++i) bias[i] = b && i < live ? to_float(b[item0 + first + i]) : 0.0f;
      int64_t k = 0;
      for (; live == W && k + W <= d; k += W) {
        typename V::T x[W];
        for (int64_t i = 0; i < W; ++i) {
          // The table in the order of memory, two rounds ahead: the hardware does not foresee reading across rows.
          __builtin_prefetch(row + 4 * W * items.stride + (k + i) * W, 0, 2);
          x[i] = widen(row + i * items.stride + k);
        }
        transpose(x);
        for (int64_t j = 0; j < W; ++j) V::store(panels + (k + j) * W, x[j]);
      }
      for (; k < d; ++k) {
        for (int64_t i = 0; i < live; ++i) panels[k * W + i] = to_float(row[i * items.stride + k]);
        for (int64_t i = live; i < W; ++i) panels[k * W + i] = 0.0f;
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

  // R users x P panels in registers: GCC keeps the sums there only if it unrolls these loops early.
  template <int R, int P>
  static void micro(const float* users, const float* panels, const float* bias, int64_t d, float* out, int64_t out_stride) {
    typename V::T acc[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) acc[r][p] = V::load(bias + p * W);
    }
    for (int64_t k = 0; k < d; ++k) {
      typename V::T item[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) item[p] = V::load(panels + (p * d + k) * W);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const auto u = V::set(users[r * d + k]);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = V::fma(u, item[p], acc[r][p]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
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
    if (r > 0 && r < rows) {  // some of them again: the same bits
      r = rows - V::rows;
      rows_of<V::rows, 2>(users + r * d, panels, bias, n, d, out + r * out_stride, out_stride);
      return;
    }
    for (; r < rows; ++r) rows_of<1, 4>(users + r * d, panels, bias, n, d, out + r * out_stride, out_stride);
  }

  // Products of one user with W rows, added to `column`. `ahead(k, i)` prefetches, as row i is read at k.
  template <class T, class Ahead>
  static typename V::T products(const float* user, const T* const* rows, float* column, int64_t d, Ahead ahead) {
    const int64_t whole = d - d % W;
    auto acc = V::load(column);
    for (int64_t k = 0; k < whole; k += W) {
      typename V::T x[W];
      for (int64_t i = 0; i < W; ++i) {
        ahead(k, i);
        x[i] = widen(rows[i] + k);
      }
      transpose(x);
      for (int64_t j = 0; j < W; ++j) acc = V::fma(V::set(user[k + j]), x[j], acc);
    }
    for (int64_t k = whole; k < d; ++k) {
      for (int64_t i = 0; i < W; ++i) column[i] = to_float(rows[i][k]);
      acc = V::fma(V::set(user[k]), V::load(column), acc);
    }
    return acc;
  }

  template <class T>
  static void dot_as(const float* user, const Items& items, const int64_t* ids, int64_t n, float* out) {
    const T* data = static_cast<const T*>(items.data);
    const T* bias = static_cast<const T*>(items.bias);
    const auto id = [&](int64_t at) { return ids[at < n ? at : n - 1]; };
    for (int64_t first = 0; first < n; first += W) {
      const T* rows[W];
      float column[W];
      for (int64_t i = 0; i < W; ++i) {
        rows[i] = data + id(first + i) * items.stride;
        column[i] = bias ? to_float(bias[id(first + i)]) : 0.0f;
      }
      const auto acc = products(user, rows, column, items.d, [&](int64_t k, int64_t i) {
        __builtin_prefetch(data + id(first + W + i) * items.stride + k, 0, 2);
      });
      V::store(column, acc);
      for (int64_t i = 0; i < W && first + i < n; ++i) out[first + i] = column[i];
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

  // Brings t.now up to a tile of whole vectors, and puts right what that gets wrong: ties inside of the tile.
  static void settle_ties(const float* scores, int64_t first, int64_t n, Thresholds& t) {
    for (; t.settled < t.c; ++t.settled) {
      const Tie& tie = t.ties[t.settled];
      const int64_t wins = tie.ahead - first;
      if (wins >= n) break;
      t.now[tie.slot] = tie.at;
      if (wins <= 0) continue;
      const auto at = V::set(tie.at);
      const int64_t last = (wins - 1) / W * W;
      int64_t equal = std::popcount(V::eq(V::load(scores + last), at) & ((2u << (wins - 1 - last)) - 1));
      for (int64_t i = 0; i < last; i += W) equal += std::popcount(V::eq(V::load(scores + i), at));
      if (equal) t.add(tie.j, static_cast<int32_t>(equal));
    }
  }

  static int32_t above(const float* scores, int64_t n, float threshold) {
    const auto wide = V::set(threshold);
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += W) count += V::count_gt(V::load(scores + i), wide);
    return static_cast<int32_t>(count);
  }

  // Where each score lies among t.now -> out.
  static void search(const float* scores, int64_t n, const Thresholds& t, int32_t* out) {
    const auto low = V::set(t.low), scale = V::set(t.scale), zero = V::set(0.0f);
    const auto last = V::set(static_cast<float>(t.bins - 1));
    for (int64_t i = 0; i < n; i += W) {
      const auto x = V::mul(V::sub(V::load(scores + i), low), scale);
      V::store_int(out + i, V::min(V::max(x, zero), last));  // max gives 0 for NaN
    }
    for (int64_t i = 0; i < n; ++i) {
      const uint16_t entry = t.table[out[i]];
      int64_t p = entry & (Thresholds::kMore - 1);
      p += t.now[p] < scores[i];
      if (__builtin_expect(entry >= Thresholds::kMore, 0)) {
        p = std::lower_bound(t.now + p, t.now + t.c, scores[i]) - t.now;
      }
      out[i] = static_cast<int32_t>(p);
    }
  }

  static int64_t count(const float* scores, int64_t first, int64_t n, Thresholds& t, int32_t* scratch) {
    const int64_t whole = t.lowest ? 0 : n - n % W;
    settle_ties(scores, first, whole, t);
    if (t.c <= Thresholds::kFew) {
      for (int64_t j = 0; j < t.c; ++j) t.add(j, above(scores, whole, t.now[j]));
    } else {
      if constexpr (requires { V::by_levels; }) {
        t.levels ? V::search_levels(scores, whole, t, scratch) : search(scores, whole, t, scratch);
      } else {
        search(scores, whole, t, scratch);
      }
      int32_t *h0 = t.hist, *h1 = h0 + t.width, *h2 = h0 + (Thresholds::histograms(t.c) - 2) * t.width, *h3 = h2 + t.width;
      for (int64_t i = 0; i < whole; i += 4) {
        ++h0[scratch[i]];
        ++h1[scratch[i + 1]];
        ++h2[scratch[i + 2]];
        ++h3[scratch[i + 3]];
      }
    }
    for (int64_t i = whole; i < n; ++i) ++t.hist[t.find(scores[i], first + i)];
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

  static int64_t select(const float* scores, int64_t n, float bar, int32_t* out) {
    const int64_t whole = n - n % W;
    const auto wide = V::set(bar);
    int64_t found = 0;
    for (int64_t i = 0; i < whole; i += W) {
      for (uint32_t hits = V::not_le(V::load(scores + i), wide); hits; hits &= hits - 1) {
        out[found++] = static_cast<int32_t>(i) + std::countr_zero(hits);
      }
    }
    for (int64_t i = whole; i < n; ++i) {
      if (!(scores[i] <= bar)) out[found++] = static_cast<int32_t>(i);
    }
    return found;
  }

  template <class T>
  static void score_one_as(const float* user, const Items& items, int64_t item0, int64_t n, float* out) {
    const T* data = static_cast<const T*>(items.data);
    const T* bias = static_cast<const T*>(items.bias);
    for (int64_t first = 0; first < n; first += W) {
      const T* rows[W];
      float column[W];
      for (int64_t i = 0; i < W; ++i) {
        const int64_t id = item0 + (first + i < n ? first + i : n - 1);
        rows[i] = data + id * items.stride;
        column[i] = bias ? to_float(bias[id]) : 0.0f;
      }
      // The table in the order of memory, two rounds ahead: the hardware does not foresee reading across rows.
      V::store(out + first, products(user, rows, column, items.d, [&](int64_t k, int64_t i) {
                 __builtin_prefetch(rows[0] + 2 * W * items.stride + (k + i) * W, 0, 2);
               }));
    }
  }

  static void score_one(const float* user, const Items& items, int64_t item0, int64_t n, float* out) {
    switch (items.dtype) {
      case Dtype::kFloat32:
        return score_one_as<float>(user, items, item0, n, out);
      case Dtype::kFloat16:
        return score_one_as<Half>(user, items, item0, n, out);
      case Dtype::kBfloat16:
        return score_one_as<Bfloat16>(user, items, item0, n, out);
    }
  }

  static constexpr Simd table() {
    int64_t by_levels = 0;
    if constexpr (requires { V::by_levels; }) by_levels = V::by_levels;
    return {V::name,
            W,
            by_levels,
            pack,
            score,
            dot,
            count,
            select,
            score_one,
            Row<V>::dots,
            Row<V>::add_rows,
            Row<V>::exps,
            Row<V>::update,
            Row<V>::random};
  }
};

}  // namespace bdkernels::cpu
