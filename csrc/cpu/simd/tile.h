// The inner loops, written once over a vector type V and compiled once for each instruction set.
// V has: T, name, lanes, rows (users in registers), load, set, store, store_int (truncated), fma, sub, mul, min, max (the
// second argument where the first is NaN), count_gt, any_nan, not_le (a bit for each lane), zip_low, zip_high; and
// `search_few` where it can search registers.
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
        for (int64_t i = 0; i < W; ++i) x[i] = widen(row + i * items.stride + k);
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

  // Sets t.now for a tile, and puts right what that gets wrong: ties inside of the tile.
  static void settle_ties(const float* scores, int64_t first, int64_t n, const Thresholds& t) {
    const int32_t begin = static_cast<int32_t>(first), end = static_cast<int32_t>(first + n),
                  middle = begin + (end - begin) / 2;
    float* __restrict now = t.now;
    const float* __restrict under = t.under;
    const float* __restrict at = t.at;
    const int32_t* __restrict ahead = t.ahead;
    for (int64_t j = 0; j < t.c; ++j) now[j] = ahead[j] > middle ? under[j] : at[j];
    for (int64_t j = 0; j < t.c; j += 64) {
      uint8_t inside[64] = {};
      const int64_t some = t.c - j < 64 ? t.c - j : 64;
      for (int64_t i = 0; i < some; ++i) inside[i] = (ahead[j + i] > begin) & (ahead[j + i] < end);
      for (int64_t word = 0; word < 64; word += 8) {  // few are: most words are zero
        uint64_t eight;
        std::memcpy(&eight, inside + word, 8);
        for (; eight; eight &= eight - 1) settle_tie(scores, begin, n, t, j + word + std::countr_zero(eight) / 8);
      }
    }
  }

  // One threshold that only some of the tile's items win a tie with: t.now is right for more than half of them.
  static void settle_tie(const float* scores, int32_t begin, int64_t n, const Thresholds& t, int64_t j) {
    const int64_t wins = t.ahead[j] - begin;
    if (t.now[j] == t.at[j]) {
      t.add(j, above(scores, wins, t.under[j]) - above(scores, wins, t.at[j]));
    } else {
      t.add(j, above(scores + wins, n - wins, t.at[j]) - above(scores + wins, n - wins, t.under[j]));
    }
  }

  static int32_t above(const float* scores, int64_t n, float threshold) {
    const auto wide = V::set(threshold);
    int64_t i = 0, count = 0;
    for (; i + W <= n; i += W) count += V::count_gt(V::load(scores + i), wide);
    for (; i < n; ++i) count += scores[i] > threshold;
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

  static int64_t count(const float* scores, int64_t first, int64_t n, const Thresholds& t, int32_t* scratch) {
    const int64_t whole = n - n % W, width = t.c + 1;
    if (t.lowest) {
      for (int64_t i = 0; i < n; ++i) ++t.hist[t.find(scores[i], first + i, 0)];
      return any_nan(scores, n);
    }
    settle_ties(scores, first, n, t);
    if (t.c <= Thresholds::kFew) {
      for (int64_t j = 0; j < t.c; ++j) t.add(j, above(scores, n, t.now[j]));
      return any_nan(scores, n);
    }
    if constexpr (requires { V::in_registers; }) {
      t.c <= V::in_registers ? V::search_few(scores, whole, t, scratch) : search(scores, whole, t, scratch);
    } else {
      search(scores, whole, t, scratch);
    }
    int32_t *h0 = t.hist, *h1 = h0 + width, *h2 = h1 + width, *h3 = h2 + width;
    for (int64_t i = 0; i < whole; i += 4) {
      ++h0[scratch[i]];
      ++h1[scratch[i + 1]];
      ++h2[scratch[i + 2]];
      ++h3[scratch[i + 3]];
    }
    for (int64_t i = whole; i < n; ++i) ++h0[std::lower_bound(t.now, t.now + t.c, scores[i]) - t.now];
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
    int64_t no_table = Thresholds::kFew;
    if constexpr (requires { V::in_registers; }) no_table = V::in_registers;
    return {V::name,
            W,
            no_table,
            pack,
            score,
            dot,
            count,
            select,
            score_one,
            Row<V>::dots,
            Row<V>::add_rows,
            Row<V>::update,
            Row<V>::random};
  }
};

}  // namespace bdkernels::cpu
