// Rows of sorted item ids that a user has seen (CSR), and the numbering of the others.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace bdkernels {

struct Seen {
  const int64_t* indptr;  // [B + 1], or null: nobody has seen anything
  const int64_t* indices;
  const int64_t* rows = nullptr;  // which rows these are, or null: all of them in order

  BDKERNELS_HD int64_t begin(int64_t row) const { return indptr ? indptr[rows ? rows[row] : row] : 0; }
  BDKERNELS_HD int64_t end(int64_t row) const { return indptr ? indptr[(rows ? rows[row] : row) + 1] : 0; }
  BDKERNELS_HD int64_t count(int64_t row) const { return end(row) - begin(row); }

  // The id of the nth unseen item of a row, n from 0: n + the seen ids with at most n unseen ids before them.
  BDKERNELS_HD int64_t nth_unseen(int64_t row, int64_t n) const {
    const int64_t first = begin(row);
    const auto before = [&](int64_t at) { return indices[first + at] - at <= n; };
    int64_t lo = 0, left = count(row);
    for (; left > 1; left -= left / 2) lo += before(lo + left / 2 - 1) * (left / 2);  // no branch that depends on an id
    return n + lo + (left == 1 && before(lo));
  }
};

}  // namespace bdkernels
