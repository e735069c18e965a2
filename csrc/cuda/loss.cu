// loss: one learner's step. A first kernel gathers the rows of each user, scores, and turns scores into losses and slopes;
// nothing else is needed for the gradient, since that of an item row is a slope times a user row. A second kernel, where an
// optimizer is fused, visits each touched row once, so a gradient of items is never written to memory.
//
// With W = 1 + M + k items a row, the step reads 4 B W d bytes of rows (a second time from a cache) and does 4 B W d FLOPs;
// with gradients asked it writes 4 B W d more; the update reads and writes each touched row and its state once and reads
// 4 B W d bytes of user rows, mostly from the cache. Two bytes a FLOP: the floor is the memory's. Everything is float32 but
// the sums of the losses. All sums have a fixed order: the same batch gives the same bits in every run.
#include "../core/step.h"
#include "device.h"

namespace bdkernels::cuda {
namespace {

constexpr int kWarps = 4;  // of a block; a warp takes a row of the batch, or a row of a table
constexpr int kSumThreads = 256;

__device__ int64_t warp_of_grid() { return int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; }

dim3 grid_of(int64_t rows) { return dim3(static_cast<unsigned>(div_up(rows, kWarps))); }

// Scores of a row of the batch -> scores [width]. The lanes share the factors, four items at a time to keep loads in flight.
__device__ void score_row(const float* user, const Rows& items, const float* bias, const Batch& batch, int64_t row,
                          float* scores) {
  constexpr int kTogether = 4;
  const int lane = threadIdx.x % kWarp;
  for (int64_t first = 0; first < batch.width(); first += kTogether) {
    int64_t ids[kTogether];
    float sums[kTogether] = {};
    BDKERNELS_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      const int64_t c = first + j;
      ids[j] = batch.item(row, c < batch.width() ? c : first);
    }
    for (int64_t k = lane; k < items.d; k += kWarp) {
      BDKERNELS_UNROLL
      for (int j = 0; j < kTogether; ++j) sums[j] += user[k] * items.row(ids[j])[k];
    }
    BDKERNELS_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      const float sum = warp_sum(sums[j]);
      if (lane == j && first + j < batch.width()) scores[first + j] = sum + (bias ? bias[ids[j]] : 0.0f);
    }
  }
  __syncwarp();
}

// Scores become slopes of the CF loss; returns the sum of its terms, in every lane.
__device__ double cf_terms(const Batch& batch, bool bpr, float* slopes) {
  const int lane = threadIdx.x % kWarp;
  const float n = static_cast<float>(batch.b), positive = slopes[0];
  double sum = 0;
  float pushes = 0;
  for (int64_t j = 1 + lane; j <= batch.m; j += kWarp) {
    const Logistic of = logistic(bpr ? slopes[j] - positive : slopes[j]);
    slopes[j] = of.sigmoid / n;
    pushes += slopes[j];
    sum += of.softplus;
  }
  pushes = warp_sum(pushes);
  sum = warp_sum(sum);
  __syncwarp();  // every lane has read the positive's score
  const Logistic pull = logistic(-positive);
  if (lane == 0) slopes[0] = bpr ? -pushes : -pull.sigmoid / n;
  return bpr ? sum : sum + pull.softplus;
}

// The same for the distillation loss; `slopes` begin at the first distilled item.
__device__ double distill_terms(const Batch& batch, const Objective& objective, int64_t row, float* slopes) {
  const int lane = threadIdx.x % kWarp;
  const auto tau_learner = static_cast<float>(objective.tau_learner), tau_guide = static_cast<float>(objective.tau_guide);
  const auto scale = static_cast<float>(objective.lambda / (objective.tau_learner * objective.live));
  double sum = 0;
  for (int64_t j = lane; j < batch.k; j += kWarp) {
    const float x = slopes[j] / tau_learner;
    slopes[j] = 0;
    if (!batch.live(row, j)) continue;
    const float target = sigmoid(batch.guide[row * batch.k + j] / tau_guide);
    const Logistic of = logistic(x);
    slopes[j] = scale * (of.sigmoid - target);
    sum += of.softplus - x * target;
  }
  return warp_sum(sum);
}

// Device memory that tells how many entries count, as a sum that may be 0; null: all.
__device__ double live_of(const Batch& batch, const int64_t* live) {
  const int64_t n = live ? *live : batch.b * batch.k;
  return n > 0 ? static_cast<double>(n) : 1.0;
}

__global__ void __launch_bounds__(kWarps* kWarp) step_kernel(Rows users, Rows items, const float* bias, Batch batch,
                                                             Objective objective, const int64_t* live, StepOut out) {
  const int64_t row = warp_of_grid(), width = batch.width(), d = users.d;
  if (row >= batch.b) return;
  const int lane = threadIdx.x % kWarp;
  const float* user = users.row(batch.users[row]);
  float* slopes = out.slopes + row * width;
  score_row(user, items, bias, batch, row, slopes);
  objective.live = live_of(batch, live);
  const double cf = cf_terms(batch, objective.bpr, slopes);
  const double distill = distill_terms(batch, objective, row, slopes + 1 + batch.m);
  if (lane == 0) {
    out.cf[row] = cf;
    out.distill[row] = distill;
  }
  __syncwarp();
  for (int64_t k = lane; k < d; k += kWarp) {
    const float factor = user[k];
    float sum = 0;
    for (int64_t c = 0; c < width; ++c) {
      const float slope = slopes[c];
      sum += slope * items.row(batch.item(row, c))[k];
      if (out.item_grad) out.item_grad[(row * width + c) * d + k] = slope * factor;
    }
    out.user_grad[row * d + k] = sum;
  }
}

// Losses of the batch from those of its rows: two numbers from one block.
__global__ void __launch_bounds__(kSumThreads) sum_kernel(Batch batch, const int64_t* live, const double* cf_rows,
                                                          const double* distill_rows, float* cf, float* distill) {
  BDKERNELS_SHARED(double, parts, 2 * kSumThreads / kWarp);
  double sums[2] = {0, 0};
  for (int64_t row = threadIdx.x; row < batch.b; row += kSumThreads) {
    sums[0] += cf_rows[row];
    sums[1] += distill_rows[row];
  }
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int i = 0; i < 2; ++i) {
    const double sum = warp_sum(sums[i]);
    if (lane == 0) parts[2 * warp + i] = sum;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double totals[2] = {0, 0};
  for (int p = 0; p < 2 * kSumThreads / kWarp; ++p) totals[p % 2] += parts[p];
  *cf = static_cast<float>(totals[0] / (batch.b > 0 ? static_cast<double>(batch.b) : 1.0));
  *distill = static_cast<float>(totals[1] / live_of(batch, live));
}

// ---- update ----

// One number of a row, and what the optimizer keeps of it.
__device__ void change(const Rule& rule, float grad, float* value, float* first, float* second) {
  const float old = *value;
  float g = grad + rule.weight_decay * old;
  if (rule.kind == RuleKind::kAdagrad) {
    *first += g * g;
    g /= std::sqrt(*first) + rule.eps;
  } else if (rule.kind == RuleKind::kAdam) {
    *first += rule.new1 * (g - *first);
    *second += rule.new2 * (g * g - *second);
    g = *first / (std::sqrt(*second) + rule.eps);
  }
  *value = old - rule.lr * g;
}

__device__ void change(const Rule& rule, float grad, const Trained& table, int64_t id, int64_t k) {
  change(rule, grad, table.data + id * table.stride + k, table.first ? table.first + id * table.d + k : nullptr,
         table.second ? table.second + id * table.d + k : nullptr);
}

// What place `at` of the batch adds to the gradient of its row: weight * row.
struct Part {
  const float* row;
  float weight;
};

// Of item rows: the slope times the user's row. One more factor, of 1, is that of the bias.
struct ItemParts {
  Rows users;
  const int64_t* user_ids;
  const float* slopes;
  int64_t width;

  __device__ Part operator()(int64_t at) const { return {users.row(user_ids[at / width]), slopes[at]}; }
};

// Of user rows: what the step has summed up already.
struct UserParts {
  const float* grads;
  int64_t d;

  __device__ Part operator()(int64_t at) const { return {grads + at * d, 1.0f}; }
};

// A warp owns the row whose first touch is its place in the sorted ids, and adds up its gradient in the order of `places`.
// The lanes share the factors; each looks up one touch of 32, and hands it round.
template <class Parts>
__global__ void __launch_bounds__(kWarps* kWarp) update_kernel(Trained table, Trained bias, Rule rule, Parts parts,
                                                               const int64_t* ids, const int64_t* places, int64_t n) {
  const int64_t begin = warp_of_grid();
  if (begin >= n) return;
  const int64_t id = ids[begin];
  if (begin > 0 && ids[begin - 1] == id) return;
  const int lane = threadIdx.x % kWarp;
  const int64_t factors = table.d + (bias.data ? 1 : 0);
  for (int64_t k0 = 0; k0 < factors; k0 += kWarp) {
    const int64_t k = k0 + lane;
    float grad = 0;
    int touches = kWarp;
    for (int64_t i = begin; touches == kWarp; i += kWarp) {
      const bool mine = i + lane < n && ids[i + lane] == id;
      const Part part = mine ? parts(places[i + lane]) : Part{nullptr, 0.0f};
      touches = __popc(__ballot_sync(kAllLanes, mine));
      for (int t = 0; t < touches; ++t) {
        const auto* row =
            reinterpret_cast<const float*>(__shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(part.row), t));
        const float weight = __shfl_sync(kAllLanes, part.weight, t);
        if (k < factors) grad += weight * (k < table.d ? row[k] : 1.0f);
      }
    }
    if (k < table.d) {
      change(rule, grad, table, id, k);
    } else if (k < factors) {
      change(rule, grad, bias, id, 0);
    }
  }
}

}  // namespace

void fused_gradient(const Rows& users, const Rows& items, const float* bias, const Batch& batch, const Objective& objective,
                    const int64_t* live, const StepOut& out, Stream stream) {
  launch(step_kernel, grid_of(batch.b), dim3(kWarps * kWarp), 0, stream, users, items, bias, batch, objective, live, out);
  launch(sum_kernel, dim3(1), dim3(kSumThreads), 0, stream, batch, live, out.cf, out.distill, out.cf_loss, out.distill_loss);
}

void update_items(const Trained& items, const Trained& bias, const Rows& users, const Batch& batch, const float* slopes,
                  const Rule& rule, const Touches& touches, Stream stream) {
  const ItemParts parts{users, batch.users, slopes, batch.width()};
  launch(update_kernel<ItemParts>, grid_of(touches.n), dim3(kWarps * kWarp), 0, stream, items, bias, rule, parts,
         touches.ids, touches.places, touches.n);
}

void update_users(const Trained& users, const float* grads, const Rule& rule, const Touches& touches, Stream stream) {
  launch(update_kernel<UserParts>, grid_of(touches.n), dim3(kWarps * kWarp), 0, stream, users, Trained{}, rule,
         UserParts{grads, users.d}, touches.ids, touches.places, touches.n);
}

}  // namespace bdkernels::cuda
