// sample: proposals and their acceptance. The counts between the two are `rank`'s.
//
// A thread takes one (user, proposal) after the other. `propose` fuses the random numbers with the search among the unseen
// items: 8 B C bytes written and log2(seen) dependent reads each, so latency is its floor and many threads hide it. `accept`
// fuses the random numbers, both log-weights and the comparison: 17 B C bytes, and at most two log and two tanh in double.
// Proposals are the reference's to the bit. Acceptance is evaluated as there, in double; log and tanh of CUDA may differ
// from the CPU's in the last bit, which changes a draw where u lies within 2^-52 of the acceptance probability: never seen.
#include "../core/philox.h"
#include "device.h"

namespace bdkernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;  // each thread goes on from there

__global__ void __launch_bounds__(kThreads)
    propose_kernel(uint64_t seed, uint32_t step, const int64_t* row_keys, int64_t pairs, int64_t start, int64_t c,
                   int64_t n_items, Seen seen, int64_t* out) {
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < pairs; at += int64_t{gridDim.x} * kThreads) {
    const int64_t row = at / c, n = n_items - seen.count(row);
    const auto index = static_cast<uint32_t>(start + at % c);
    const Words r = philox(seed, index, kPropose, static_cast<uint64_t>(row_keys[row]), step);
    out[at] = n > 0 ? seen.nth_unseen(row, below(r.w[0], r.w[1], n)) : -1;
  }
}

__global__ void __launch_bounds__(kThreads)
    accept_kernel(uint64_t seed, uint32_t step, const int64_t* row_keys, int64_t pairs, int64_t start, int64_t c,
                  const int64_t* rank_guide, const int64_t* rank_learner, const int64_t* candidates, Weight weight, int word,
                  bool* out) {
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < pairs; at += int64_t{gridDim.x} * kThreads) {
    const int64_t row = at / c, n = candidates[row];
    const auto index = static_cast<uint32_t>(start + at % c);
    const Words r = philox(seed, index, kAccept, static_cast<uint64_t>(row_keys[row]), step);
    out[at] = accepts(weight, max_log_weight(weight, n), rank_guide[at], rank_learner[at], n,
                      word == 0 ? uniform(r.w[0], r.w[1]) : uniform(r.w[2], r.w[3]));
  }
}

dim3 grid_of(int64_t pairs) { return dim3(static_cast<unsigned>(std::min(div_up(pairs, kThreads), kMostBlocks))); }

}  // namespace

void propose(uint64_t seed, uint32_t step, const int64_t* row_keys, int64_t b, int64_t start, int64_t c, int64_t n_items,
             const Seen& seen, int64_t* out, Stream stream) {
  launch(propose_kernel, grid_of(b * c), dim3(kThreads), 0, stream, seed, step, row_keys, b * c, start, c, n_items, seen,
         out);
}

void accept(uint64_t seed, uint32_t step, const int64_t* row_keys, int64_t b, int64_t start, int64_t c,
            const int64_t* rank_guide, const int64_t* rank_learner, const int64_t* candidates, const Weight& weight,
            bool to_teacher, bool* out, Stream stream) {
  launch(accept_kernel, grid_of(b * c), dim3(kThreads), 0, stream, seed, step, row_keys, b * c, start, c, rank_guide,
         rank_learner, candidates, weight, to_teacher ? 2 : 0, out);
}

}  // namespace bdkernels::cuda
