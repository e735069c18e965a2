// sample: a whole round of the sampler, in place (bdkernels/types/round.py): propose, count twice, close. Five launches.
//
// propose   for each model, a block for each row. It fuses the random numbers, the search among the unseen items, the scores
//           of the proposals (listed.h) and the sort of their order keys in shared memory; and it packs the row's user, so
//           that the rows which are left lie one after the other for the count.
// count     rank.cu's, of each model, over all items: what the row has seen is counted with the rest.
// close     a block for each row. It takes off what the row has seen, sums the histograms from the best down to ranks,
//           accepts in both directions, puts the accepted ones behind the draws that are there, in the order of their
//           counters, and lists the row for the next round if it takes more. Only the order of that list depends on the
//           order of the blocks, and no result depends on it.
//
// Floor of the two outer ones: for each model and proposal 4 d bytes of the item's row, and 18 B of its key, place and bin,
// written once and read once; at 512 proposals and 25,000 items about a hundredth of the count's time, so they are written
// for few launches. The state is a parameter that they read where it lies (__grid_constant__): where an index into it is not
// known to the compiler, each thread would have a copy of it else.
#include <algorithm>
#include <bit>

#include "../core/philox.h"
#include "listed.h"

namespace bdkernels::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kBlocksOfSm = 4;  // for which there are registers enough that nothing spills

// run(Table<T>) for the dtype of the items, which are a model's own.
template <class Run>
__device__ float with_items(const Items& items, Run run) {
  if (items.dtype == Dtype::kFloat16) return run(table_of<Half>(items));
  if (items.dtype == Dtype::kBfloat16) return run(table_of<Bfloat16>(items));
  return run(table_of<float>(items));
}

// Sorts `capacity` keys, a power of two, and what belongs to each, by a bitonic network.
__device__ void sort(int64_t* keys, uint16_t* order, int capacity) {
  for (int run = 2; run <= capacity; run *= 2) {
    for (int half = run / 2; half > 0; half /= 2) {
      __syncthreads();
      for (int pair = threadIdx.x; pair < capacity / 2; pair += kThreads) {
        const int low = pair & (half - 1), i = 2 * (pair - low) + low, j = i + half;
        const int64_t a = keys[i], b = keys[j];
        if ((a > b) != ((i & run) == 0)) continue;
        keys[i] = b, keys[j] = a;
        const uint16_t first = order[i];
        order[i] = order[j], order[j] = first;
      }
    }
  }
  __syncthreads();
}

// A block for the row at each place of the list; of model m, whose items are `items`. `capacity`: c or the next power of
// two.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksOfSm)
    propose_round_kernel(const __grid_constant__ Round round, const __grid_constant__ RoundScratch scratch, int m,
                         Table<T> items, int64_t start, int c, int capacity) {
  BDKERNELS_DYNAMIC_SHARED(shared);
  const int64_t place = blockIdx.x;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (place == 0 && m == 0 && threadIdx.x == 0) *round.next_live = 0;
  if (place >= *round.live) return;
  int64_t* keys = reinterpret_cast<int64_t*>(shared);
  uint16_t* order = reinterpret_cast<uint16_t*>(keys + capacity);
  float* tile = reinterpret_cast<float*>(order + capacity) + warp * kListedFloats;
  const int64_t row = round.rows[place], n = round.candidates[row], d = items.d;
  const uint64_t seed = *round.seed, row_key = round.row_keys[row];
  const uint32_t step = static_cast<uint32_t>(*round.step);
  const float* user = round.users[m].data + row * d;
  for (int64_t k = threadIdx.x; k < d; k += kThreads) scratch.users[m][place * d + k] = user[k];
  for (int i = threadIdx.x; i <= c; i += kThreads) scratch.histogram[m][place * (c + 1) + i] = 0;
  for (int first = warp * kWarp; first < capacity; first += kThreads) {
    const int i = first + lane;
    int64_t id = 0;
    if (i < c) {
      const Words r = philox(seed, static_cast<uint32_t>(start + i), kPropose, row_key, step);
      id = round.seen.nth_unseen(row, below(r.w[0], r.w[1], n));
    }
    const float score = listed_score(user, items, id, c - first, tile);
    keys[i] = i < c ? signed_key(score, id) : INT64_MAX;
    order[i] = static_cast<uint16_t>(i);
  }
  sort(keys, order, capacity);
  for (int i = threadIdx.x; i < c; i += kThreads) {
    scratch.keys[m][place * c + i] = keys[i];
    scratch.order[m][place * c + i] = order[i];
  }
}

// The sum of what the threads before this one have, and of all.
struct Sums {
  int before, all;
};
__device__ Sums sum_over_threads(int value, int* of_warp) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int sum = value;
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int below = __shfl_up_sync(kAllLanes, sum, distance);
    if (lane >= distance) sum += below;
  }
  if (lane == kWarp - 1) of_warp[warp] = sum;
  __syncthreads();
  Sums out{sum - value, 0};
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) out.before += of_warp[w];
    out.all += of_warp[w];
  }
  __syncthreads();
  return out;
}

// The row of a block that closes a round, and what its threads share.
struct Closing {
  const Round& round;
  const RoundScratch& scratch;
  int64_t place, row;
  int c, mine;     // proposals, and how many of them, side by side, each thread has at most
  int* all_bins;   // [2, c + 1] of each model
  int* all_ranks;  // [2, c] of each model, in the order of the proposals' counters
  int* ids;        // [c]
  int* of_warp;    // [kWarps]
  double* bounds;  // [2] the largest log-weight of each direction

  __device__ int* bins(int m) const { return all_bins + m * (c + 1); }
  __device__ int* ranks(int m) const { return all_ranks + m * c; }

  __device__ void read_bins() const {
    for (int m = 0; m < 2; ++m) {
      for (int i = threadIdx.x; i <= c; i += kThreads) {
        bins(m)[i] = static_cast<int>(scratch.histogram[m][place * (c + 1) + i]);
      }
    }
    if (threadIdx.x < 2) bounds[threadIdx.x] = max_log_weight(round.weights[threadIdx.x], round.candidates[row]);
    __syncthreads();
  }

  // A NaN among them is in no bin; the count has reported it.
  __device__ void take_off_seen() const {
    for (int64_t at = round.seen.begin(row) + threadIdx.x; at < round.seen.end(row); at += kThreads) {
      const int64_t id = round.seen.indices[at];
      for (int m = 0; m < 2; ++m) {
        const float* user = scratch.users[m] + place * round.items[m].d;
        const float score = with_items(round.items[m], [&](const auto& items) { return dot(user, items, id); });
        if (score != score) continue;
        atomicAdd(&bins(m)[position(scratch.keys[m] + place * c, c, signed_key(score, id))], -1);
      }
    }
    __syncthreads();
  }

  // From the bins: an item in bin b comes before b of the keys. On tensor cores a bin may lack an item that was taken off.
  __device__ void sum_ranks(int m) const {
    const int first = threadIdx.x * mine;
    int sum = 0;
    for (int i = first; i < first + mine && i < c; ++i) sum += bins(m)[c - i];
    int above = sum_over_threads(sum, of_warp).before;
    for (int i = first; i < first + mine && i < c; ++i) {
      const int64_t at = place * c + c - 1 - i;
      const int proposal = scratch.order[m][at];
      above += bins(m)[c - i];
      if (proposal >= c) continue;  // a NaN has taken its place
      ranks(m)[proposal] = 1 + (above > 0 ? above : 0);
      if (m == 0) ids[proposal] = static_cast<int>(id_of_key(scratch.keys[m][at]));
    }
  }

  // In a direction where the row has `had` draws. Returns how many were accepted with those, which may be more than k.
  __device__ int64_t accept(int to_teacher, int64_t start, int64_t had) const {
    const uint64_t seed = *round.seed, row_key = round.row_keys[row];
    const auto step = static_cast<uint32_t>(*round.step);
    const int64_t n = round.candidates[row], k = round.k;
    const int first = threadIdx.x * mine;
    unsigned hits = 0;  // a bit for each of the thread's proposals
    for (int e = 0; e < mine && first + e < c; ++e) {
      const int i = first + e;
      const Words r = philox(seed, static_cast<uint32_t>(start + i), kAccept, row_key, step);
      const int guide = ranks(to_teacher)[i], learner = ranks(1 - to_teacher)[i];
      const double u = to_teacher ? uniform(r.w[2], r.w[3]) : uniform(r.w[0], r.w[1]);
      hits |= unsigned{accepts(round.weights[to_teacher], bounds[to_teacher], guide, learner, n, u)} << e;
    }
    const Sums sums = sum_over_threads(__popc(hits), of_warp);
    int64_t at = had + sums.before;
    for (int e = 0; e < mine; ++e) {
      if (!(hits >> e & 1)) continue;
      if (at < k) round.ids[(to_teacher * round.b + row) * k + at] = ids[first + e];
      ++at;
    }
    return had + sums.all;
  }
};

__global__ void __launch_bounds__(kThreads)
    close_round_kernel(const __grid_constant__ Round round, const __grid_constant__ RoundScratch scratch, int64_t start,
                       int c) {
  BDKERNELS_DYNAMIC_SHARED(shared);
  BDKERNELS_SHARED(int, of_warp, kWarps);
  BDKERNELS_SHARED(double, bounds, 2);
  const int64_t place = blockIdx.x, stop = start + c;
  if (place >= *round.live) return;
  int* const ints = reinterpret_cast<int*>(shared);
  int* const ranks = ints + 2 * (c + 1);
  const Closing closing{round, scratch, place,         round.rows[place], c,     (c + kThreads - 1) / kThreads,
                        ints,  ranks,   ranks + 2 * c, of_warp,           bounds};
  closing.read_bins();
  closing.take_off_seen();
  for (int m = 0; m < 2; ++m) closing.sum_ranks(m);
  bool takes_more = false, is_short = false;
  for (int to_teacher = 0; to_teacher < 2; ++to_teacher) {
    int64_t* const hits = &round.hits[to_teacher * round.b + closing.row];
    int64_t has = *hits;
    __syncthreads();  // before it is changed; from here on all ranks are there
    if (!round.on[to_teacher]) continue;
    if (has < round.k && (start < round.probe || has >= round.min_hits)) {
      has = closing.accept(to_teacher, start, has);
      if (threadIdx.x == 0) *hits = has;
    }
    if (has >= round.k) continue;
    is_short = true;
    takes_more |= stop < round.cap && (stop < round.probe || has >= round.min_hits);
  }
  if (threadIdx.x != 0) return;
  if (takes_more) {
    round.next_rows[atomicAdd(reinterpret_cast<unsigned long long*>(round.next_live), 1ull)] = closing.row;
  } else if (is_short) {
    add(round.short_rows, 1);
  }
}

}  // namespace

void draw_round(const Round& round, const RoundScratch& scratch, int64_t start, int64_t stop, Precision precision,
                int64_t blocks, Stream stream) {
  const int c = static_cast<int>(stop - start), capacity = std::max(kWarp, static_cast<int>(std::bit_ceil(unsigned(c))));
  const auto rows = static_cast<unsigned>(round.n_rows);
  const size_t shared = capacity * (sizeof(int64_t) + sizeof(uint16_t)) + kWarps * kListedFloats * sizeof(float);
  for (int m = 0; m < 2; ++m) {
    with_table(round.items[m], [&](auto table) {
      launch(propose_round_kernel<typename decltype(table)::Element>, dim3(rows), dim3(kThreads), shared, stream, round,
             scratch, m, table, start, c, capacity);
    });
    const Query query{.keys = scratch.keys[m],
                      .order = nullptr,
                      .c = c,
                      .item_offset = 0,
                      .live = round.live,
                      .histogram = scratch.histogram[m],
                      .counts = nullptr,
                      .nan_at = round.nan_at + m};
    count_above({scratch.users[m], round.n_rows}, round.items[m], query, {nullptr, nullptr}, precision, blocks, stream);
  }
  launch(close_round_kernel, dim3(rows), dim3(kThreads), (5 * c + 2) * sizeof(int), stream, round, scratch, start, c);
}

}  // namespace bdkernels::cuda
