// loss: one learner's step. `step_kernel` gathers the rows of each user, scores, and turns scores into losses and slopes;
// nothing else is needed for the gradient, since that of an item row is a slope times a user row. Where an optimizer is
// fused, `keys_kernel` lists what the batch touches, items and behind them users, the caller sorts that, and `update_kernel`
// visits each touched row once: a gradient of items is never written to memory.
//
// With W = 1 + M + k items a row, the step reads 4 B W d bytes of rows (a second time from a cache) and does 4 B W d FLOPs;
// with gradients asked it writes 4 B W d more, and with an optimizer 8 B d. The update reads and writes each touched row and
// its state once, and 4 B (W + 1) d bytes of what the step left, mostly from the cache. Two bytes a FLOP: the floor is the
// memory's. Keys have 4 bytes where the numbers of items and users together fit, so a radix sort of them takes half its
// passes.
//
// Launches of a gradient: keys, which checks the ids, step, and `sum_kernel`. Of a fused step: keys, the sort, step, update,
// and `finish_kernel` for rows of more than kPiece touches. Such a row is cut into pieces of kPiece touches, counted from
// its first one, a warp for each; a lane has kTogether touches' loads on their way at a time. Everything is float32 but the
// sums of the losses. All sums have a fixed order: over the touches of a piece in the order of the batch, then over the
// pieces. So the same batch gives the same bits in every run, and what else is in the batch changes none of a row's.
#include "../core/step.h"
#include "device.h"
#include "terms.h"

namespace bdkernels::cuda {
namespace {

constexpr int kWarps = 4;  // of a block; a warp takes a row of the batch, or a piece of the touches of a row
constexpr int kThreads = kWarps * kWarp;
constexpr int kTogether = 4;  // rows or numbers whose loads are on their way at a time

__device__ int64_t warp_of_grid() { return int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; }

dim3 grid_of(int64_t rows) { return dim3(static_cast<unsigned>(div_up(rows, kWarps))); }

// Scores of a row of the batch -> scores [width]. The lanes share the factors of kTogether items at a time.
__device__ void score_row(const float* user, const Rows& items, const float* bias, const Batch& batch, int64_t row,
                          float* scores) {
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

// What the distillation loss is divided by: how many entries count, or rows, at least 1. `live`: null where it is rows.
__device__ double divisor(const Batch& batch, const int64_t* live) {
  const int64_t count = live ? *live : batch.b;
  return count > 0 ? static_cast<double>(count) : 1.0;
}

template <CfLoss kCf, DistillLoss kDistill>
__global__ void __launch_bounds__(kThreads) step_kernel(Rows users, Rows items, const float* bias, Batch batch,
                                                        Objective objective, const int64_t* live, StepOut out) {
  const int64_t row = warp_of_grid(), width = batch.width(), d = users.d;
  if (row >= batch.b) return;
  const int lane = threadIdx.x % kWarp;
  const float* user = users.row(batch.users[row]);
  float* slopes = out.slopes + row * width;
  score_row(user, items, bias, batch, row, slopes);
  objective.count = divisor(batch, live);
  const double cf = kCf == CfLoss::kSoftmax ? softmax_terms(batch, slopes) : cf_terms(batch, kCf == CfLoss::kBpr, slopes);
  const auto distill_of = kDistill == DistillLoss::kListwise ? listwise_terms : distill_terms;
  const double distill = distill_of(batch, objective, row, slopes + 1 + batch.m);
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
    if (out.user_rows) out.user_rows[row * d + k] = factor;
  }
}

// Losses of the batch from those of its rows, by one block.
__device__ void sum_losses(const Batch& batch, const int64_t* live, const StepOut& out) {
  BDKERNELS_SHARED(double, parts, 2 * kWarps);
  double sums[2] = {0, 0};
  for (int64_t first = threadIdx.x; first < batch.b; first += kTogether * kThreads) {
    double terms[kTogether][2];
    BDKERNELS_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      const int64_t row = first + j * kThreads;
      terms[j][0] = row < batch.b ? out.cf[row] : 0;
      terms[j][1] = row < batch.b ? out.distill[row] : 0;
    }
    BDKERNELS_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      sums[0] += terms[j][0];
      sums[1] += terms[j][1];
    }
  }
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int i = 0; i < 2; ++i) {
    const double sum = warp_sum(sums[i]);
    if (lane == 0) parts[2 * warp + i] = sum;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double totals[2] = {0, 0};
  for (int p = 0; p < 2 * kWarps; ++p) totals[p % 2] += parts[p];
  *out.cf_loss = static_cast<float>(totals[0] / (batch.b > 0 ? static_cast<double>(batch.b) : 1.0));
  *out.distill_loss = static_cast<float>(totals[1] / divisor(batch, live));
}

__global__ void __launch_bounds__(kThreads) sum_kernel(Batch batch, const int64_t* live, StepOut out) {
  sum_losses(batch, live, out);
}

// ---- update ----

// Row of each entry of the batch: item c of row r at r * width + c, and behind all of them the users, past the items. Null:
// they are not wanted. It counts what is live, and notes an id out of range; both counts are 1 before.
template <class Key>
__global__ void __launch_bounds__(kThreads)
    keys_kernel(Batch batch, int64_t n_users, int64_t n_items, Key* keys, int64_t* counts) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x, width = batch.width(), items = batch.b * width;
  bool live = false, inside = true;
  if (at < items) {
    const int64_t row = at / width, c = at % width, id = batch.item(row, c);
    live = c > batch.m && batch.live(row, c - 1 - batch.m);
    inside = id >= 0 && id < n_items;
    if (keys) keys[at] = static_cast<Key>(id);
  } else if (at < items + batch.b) {
    const int64_t id = batch.users[at - items];
    inside = id >= 0 && id < n_users;
    if (keys) keys[at] = static_cast<Key>(n_items + id);
  }
  const int found = __popc(__ballot_sync(kAllLanes, live));
  if (threadIdx.x % kWarp == 0 && found > 0) add(counts, found);
  if (at == 0) add(counts, -1);
  if (!inside) deny(counts + 1);
}

// One thread: torch's operators take ten launches for this.
__global__ void __launch_bounds__(kWarp) rate_kernel(Rate of, float* out) {
  const double t = *of.count + 1, lr = of.lr_at ? *of.lr_at : of.lr;
  *out = static_cast<float>(lr * std::sqrt(1 - std::pow(of.beta2, t)) / (1 - std::pow(of.beta1, t)));
}

// A number of a row, and what the optimizer keeps of it.
struct Number {
  float value, first, second;
};

__device__ Number load_number(const Trained& table, int64_t id, int64_t k) {
  return {table.data[id * table.stride + k], table.first ? table.first[id * table.d + k] : 0.0f,
          table.second ? table.second[id * table.d + k] : 0.0f};
}

__device__ void store_number(const Trained& table, int64_t id, int64_t k, const Number& number) {
  table.data[id * table.stride + k] = number.value;
  if (table.first) table.first[id * table.d + k] = number.first;
  if (table.second) table.second[id * table.d + k] = number.second;
}

__device__ Number changed(const Rule& rule, float grad, Number of) {
  float g = grad + rule.weight_decay * of.value;
  if (rule.kind == RuleKind::kAdagrad) {
    of.first += g * g;
    g /= std::sqrt(of.first) + rule.eps;
  } else if (rule.kind == RuleKind::kAdam) {
    of.first += rule.new1 * (g - of.first);
    of.second += rule.new2 * (g * g - of.second);
    g = of.first / (std::sqrt(of.second) + rule.eps);
  }
  of.value -= rule.lr * g;
  return of;
}

constexpr int kFactors = 2;  // of a lane in one pass over the factors
// Blocks of a multiprocessor at least: said, lest the compiler wait for each load before the next one.
template <class Key>
constexpr int kResident = sizeof(Key) == 4 ? 10 : 9;

// Some factors of a gradient, and the sum of the weights, which is the gradient of a bias.
struct Sums {
  float factors[kFactors], weight;
};

// What a place of the batch adds to the gradient of its row: weight * row, of the sources that the row has.
struct Part {
  int row;
  float weight;
};

struct Changing {
  Number factors[kFactors], bias;
};

template <class Key>
struct Update {
  Training of;
  Rule rule;
  const float* lr;
  const Key* keys;
  const int64_t* places;
  int n, items, width, d;  // `items`: of the places, the others are users
  const float *slopes, *user_rows, *user_grad;
  float* partials;

  // Whether the row of `key` is touched at a place of the sorted list.
  __device__ bool touches(Key key, int at) const { return at < n && keys[at] == key; }

  // The first touch of the row that place `at` touches; it lies behind `below`.
  __device__ int first_touch(int at, int below) const {
    const Key key = keys[at];
    while (at - below > 1) {
      const int middle = below + (at - below) / 2;
      (keys[middle] == key ? at : below) = middle;
    }
    return at;
  }

  // Whether a piece begins at this place that is not the first one of its row.
  __device__ bool continues(Key key, int at) const {
    return at >= kPiece && keys[at - kPiece] == key && (at - first_touch(at - kPiece, -1)) % kPiece == 0;
  }

  __device__ bool is_item(Key key) const { return key < of.items.n; }

  // Of an item, the slope times the user's row as it was; of a user, what the step has summed up already.
  __device__ Part part(int place) const {
    if (place < items) return {place / width, slopes[place]};
    return {place - items, 1.0f};
  }

  // What the warp's lanes add up of the touches from `begin` on, kPiece at most: factors k0 + lane, k0 + lane + 32. Each
  // lane looks up one touch of 32, and hands it round.
  __device__ Sums piece(Key key, int begin, int k0) const {
    const int k = k0 + threadIdx.x % kWarp;
    const float* rows = (is_item(key) ? user_rows : user_grad) + k;
    Sums sums{};
    int found = kWarp;
    for (int i = 0; i < kPiece && found == kWarp; i += kWarp) {
      const int at = begin + i + threadIdx.x % kWarp;
      const bool mine = touches(key, at);
      const Part own = mine ? part(static_cast<int>(places[at])) : Part{0, 0.0f};
      found = __popc(__ballot_sync(kAllLanes, mine));
      for (int t = 0; t < found; t += kTogether) {
        const float* from[kTogether];
        float weights[kTogether], values[kTogether][kFactors];
        BDKERNELS_UNROLL
        for (int j = 0; j < kTogether; ++j) {
          from[j] = rows + int64_t{__shfl_sync(kAllLanes, own.row, t + j)} * d;
          weights[j] = __shfl_sync(kAllLanes, own.weight, t + j);
        }
        BDKERNELS_UNROLL
        for (int j = 0; j < kTogether; ++j) {
          BDKERNELS_UNROLL
          for (int v = 0; v < kFactors; ++v) values[j][v] = t + j < found && k + v * kWarp < d ? from[j][v * kWarp] : 0.0f;
        }
        BDKERNELS_UNROLL
        for (int j = 0; j < kTogether; ++j) {  // what is past the last touch adds 0 times 0
          sums.weight += weights[j];
          BDKERNELS_UNROLL
          for (int v = 0; v < kFactors; ++v) sums.factors[v] += weights[j] * values[j][v];
        }
      }
    }
    return sums;
  }

  // What a lane changes of the row in one pass: its factors, and in the last pass one lane the bias.
  __device__ Changing load(Key key, int k0) const {
    const int k = k0 + threadIdx.x % kWarp;
    Changing now{};
    BDKERNELS_UNROLL
    for (int v = 0; v < kFactors; ++v) {
      if (k + v * kWarp < d) now.factors[v] = load_number(is_item(key) ? of.items : of.users, id(key), k + v * kWarp);
    }
    if (has_bias(key, k0)) now.bias = load_number(of.bias, id(key), 0);
    return now;
  }

  __device__ void change(Key key, int k0, const Changing& old, const Sums& sums) const {
    const int k = k0 + threadIdx.x % kWarp;
    Rule now = rule;
    if (lr) now.lr = *lr;
    BDKERNELS_UNROLL
    for (int v = 0; v < kFactors; ++v) {
      const Number number = changed(now, sums.factors[v], old.factors[v]);
      if (k + v * kWarp < d) store_number(is_item(key) ? of.items : of.users, id(key), k + v * kWarp, number);
    }
    if (has_bias(key, k0)) store_number(of.bias, id(key), 0, changed(now, sums.weight, old.bias));
  }

  __device__ bool has_bias(Key key, int k0) const {
    return is_item(key) && of.bias.data && k0 + kFactors * kWarp >= d && threadIdx.x % kWarp == 0;
  }

  __device__ int64_t id(Key key) const { return is_item(key) ? key : key - of.items.n; }

  __device__ float* partial(int begin) const { return partials + int64_t{begin / kPiece} * (d + 1); }

  // Calls run(k0) for each pass over the factors; one even where there are none, but a bias.
  template <class Run>
  __device__ void passes(Run run) const {
    for (int k0 = 0; k0 == 0 || k0 < d; k0 += kFactors * kWarp) run(k0);
  }
};

// The first block adds up the losses. In the others a warp owns the piece that begins at its place in the sorted list, if
// one does, and the row if that is its only piece; else it leaves the piece's sum for `finish_kernel`, which takes the first
// piece.
template <class Key>
__global__ void __launch_bounds__(kThreads, kResident<Key>)
    update_kernel(Update<Key> update, Batch batch, const int64_t* live, StepOut out) {
  if (blockIdx.x == 0) {
    sum_losses(batch, live, out);
    return;
  }
  const int64_t warp = warp_of_grid() - kWarps;
  if (warp >= update.n) return;
  const int begin = static_cast<int>(warp);
  const Key key = update.keys[begin];
  const bool first = begin == 0 || update.keys[begin - 1] != key;
  if (first ? update.touches(key, begin + kPiece) : !update.continues(key, begin)) return;
  update.passes([&](int k0) {
    Changing row{};
    if (first) row = update.load(key, k0);  // on its way while the gradient is added up
    const Sums sums = update.piece(key, begin, k0);
    if (first) {
      update.change(key, k0, row, sums);
      return;
    }
    float* partial = update.partial(begin);
    const int k = k0 + threadIdx.x % kWarp;
    for (int v = 0; v < kFactors; ++v) {
      if (k + v * kWarp < update.d) partial[k + v * kWarp] = sums.factors[v];
    }
    if (k == k0) partial[update.d] = sums.weight;
  });
}

// Rows of several pieces. Every such row touches places that are multiples of kPiece; the warp of the first of these owns
// it.
template <class Key>
__global__ void __launch_bounds__(kThreads, kResident<Key>) finish_kernel(Update<Key> update) {
  const int64_t multiple = warp_of_grid() * kPiece;
  if (multiple >= update.n) return;
  const int at = static_cast<int>(multiple);
  const Key key = update.keys[at];
  if (at > 0 && update.keys[at - kPiece] == key) return;
  const int begin = update.first_touch(at, at > 0 ? at - kPiece : -1);
  if (!update.touches(key, begin + kPiece)) return;
  int pieces = 1;
  for (int found = kWarp; found == kWarp; pieces += found) {
    found = __popc(__ballot_sync(kAllLanes, update.touches(key, begin + (pieces + threadIdx.x % kWarp) * kPiece)));
  }
  update.passes([&](int k0) {
    const int k = k0 + threadIdx.x % kWarp;
    const Changing row = update.load(key, k0);
    Sums sums = update.piece(key, begin, k0);
    for (int first = 1; first < pieces; first += kTogether) {
      Sums parts[kTogether];
      BDKERNELS_UNROLL
      for (int j = 0; j < kTogether; ++j) {
        const bool there = first + j < pieces;
        const float* partial = update.partial(begin + (there ? first + j : first) * kPiece);
        parts[j].weight = there ? partial[update.d] : 0.0f;
        BDKERNELS_UNROLL
        for (int v = 0; v < kFactors; ++v) {
          parts[j].factors[v] = there && k + v * kWarp < update.d ? partial[k + v * kWarp] : 0.0f;
        }
      }
      BDKERNELS_UNROLL
      for (int j = 0; j < kTogether; ++j) {
        sums.weight += parts[j].weight;
        BDKERNELS_UNROLL
        for (int v = 0; v < kFactors; ++v) sums.factors[v] += parts[j].factors[v];
      }
    }
    update.change(key, k0, row, sums);
  });
}

template <class Key>
void update_rows(const Batch& batch, const int64_t* live, const StepOut& out, const Training& of, const Rule& rule,
                 const float* lr, const Touches& touches, float* partials, Stream stream) {
  const Update<Key> update{of,
                           rule,
                           lr,
                           static_cast<const Key*>(touches.keys),
                           touches.places,
                           static_cast<int>(touches.n),
                           static_cast<int>(batch.b * batch.width()),
                           static_cast<int>(batch.width()),
                           static_cast<int>(of.users.d),
                           out.slopes,
                           out.user_rows,
                           out.user_grad,
                           partials};
  launch(update_kernel<Key>, dim3(1 + grid_of(touches.n).x), dim3(kThreads), 0, stream, update, batch, live, out);
  launch(finish_kernel<Key>, grid_of(div_up(touches.n, kPiece)), dim3(kThreads), 0, stream, update);
}

template <CfLoss kCf>
auto step_of(DistillLoss distill) {
  return distill == DistillLoss::kListwise ? step_kernel<kCf, DistillLoss::kListwise> : step_kernel<kCf, DistillLoss::kBce>;
}

// The kernel for these losses.
auto step_of(const Objective& objective) {
  return objective.cf == CfLoss::kSoftmax ? step_of<CfLoss::kSoftmax>(objective.distill)
         : objective.cf == CfLoss::kBpr   ? step_of<CfLoss::kBpr>(objective.distill)
                                          : step_of<CfLoss::kBce>(objective.distill);
}

// For `divisor`.
const int64_t* counted(const Objective& objective, const int64_t* live) {
  return objective.distill == DistillLoss::kListwise ? nullptr : live;
}

}  // namespace

void step_keys(const Batch& batch, int64_t n_users, int64_t n_items, void* keys, bool wide, int64_t* counts, Stream stream) {
  const auto queue = [&](auto* out, auto kernel) {
    const dim3 grid(static_cast<unsigned>(div_up(batch.b * (batch.width() + 1), kThreads)));
    launch(kernel, grid, dim3(kThreads), 0, stream, batch, n_users, n_items, out, counts);
  };
  if (wide) {
    queue(static_cast<int64_t*>(keys), keys_kernel<int64_t>);
  } else {
    queue(static_cast<int32_t*>(keys), keys_kernel<int32_t>);
  }
}

void rate(const Rate& of, float* out, Stream stream) { launch(rate_kernel, dim3(1), dim3(1), 0, stream, of, out); }

void fused_gradient(const Rows& users, const Rows& items, const float* bias, const Batch& batch, const Objective& objective,
                    const int64_t* live, const StepOut& out, Stream stream) {
  live = counted(objective, live);
  launch(step_of(objective), grid_of(batch.b), dim3(kThreads), 0, stream, users, items, bias, batch, objective, live, out);
  launch(sum_kernel, dim3(1), dim3(kThreads), 0, stream, batch, live, out);
}

void fused_step(const Training& of, const Batch& batch, const Objective& objective, const int64_t* live, const StepOut& out,
                const Rule& rule, const float* lr, const Touches& touches, float* partials, Stream stream) {
  live = counted(objective, live);
  const Rows users{of.users.data, of.users.n, of.users.d, of.users.stride};
  const Rows items{of.items.data, of.items.n, of.items.d, of.items.stride};
  launch(step_of(objective), grid_of(batch.b), dim3(kThreads), 0, stream, users, items, of.bias.data, batch, objective, live,
         out);
  (touches.wide ? update_rows<int64_t> : update_rows<int32_t>)(batch, live, out, of, rule, lr, touches, partials, stream);
}

}  // namespace bdkernels::cuda
