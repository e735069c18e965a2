// The thresholds of a block of users, sorted and tabled, and the histograms of the items between them.
#pragma once
#include <cstdint>
#include <vector>

#include "simd/simd.h"

namespace bdkernels::cpu {

// What a count asks: for each user row and column, an item counts if its score is above the threshold, or equal with a lower
// id.
struct Query {
  const float* thresholds;  // [B, c], no NaN
  const int64_t* tie_ids;   // [B, c]
  int64_t c;
  int64_t item_offset, n;  // ids of the table's items: item_offset .. item_offset + n - 1
};

class ThresholdBlock {
 public:
  ThresholdBlock(const Query& query, int64_t users);

  // Bytes that a user takes of the cache while his tiles are counted.
  static int64_t user_bytes(int64_t c);

  // Forgets what it held, and takes the users of rows [row0, row1).
  void begin(int64_t row0, int64_t row1);
  // Tiles of a row must be counted in the order of their items.
  Thresholds& operator[](int64_t row) { return of_[row - row0_]; }
  // Adds the counts so far to out [B, c], which other threads add to as well.
  void end(int64_t* out) const;

 private:
  void prepare(int64_t row);

  Query query_;
  int levels_;
  int64_t bins_, slots_, width_, row0_ = 0, row1_ = 0;
  std::vector<int32_t> slot_, place_;  // see Thresholds
  std::vector<float> at_, now_;
  std::vector<int32_t> ahead_, order_, hist_;  // order: the column that each sorted threshold came from
  std::vector<Tie> ties_;
  std::vector<uint16_t> table_;
  std::vector<Thresholds> of_;
  std::vector<uint64_t> keys_, spare_;
};

}  // namespace bdkernels::cpu
