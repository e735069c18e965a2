// loss
#include <limits>
#include <tuple>
#include <vector>

#include "cuda_arguments.h"
#include "step_arguments.h"

namespace bdkernels::binding {
namespace {

// Everything of a step, by the names of cuda::StepOut: with the gradient of the items, or with the users' rows for a fused
// one.
struct Step {
  Tensor rows, cf_loss, distill_loss, user_grad, slopes, of_items_or_users;

  Step(const Tensor& like, const Batch& batch, int64_t d, bool fused)
      : rows(torch::stable::new_empty(like, {2, batch.b}, ScalarType::Double)),
        cf_loss(torch::stable::new_empty(like, {})),
        distill_loss(torch::stable::new_empty(like, {})),
        user_grad(torch::stable::new_empty(like, {batch.b, d})),
        slopes(torch::stable::new_empty(like, {batch.b, batch.width()})),
        of_items_or_users(fused ? torch::stable::new_empty(like, {batch.b, d})
                                : torch::stable::new_empty(like, {batch.b, batch.width(), d})),
        b_(batch.b),
        fused_(fused) {}

  cuda::StepOut out() {
    double* sums = out_of<double>(rows);
    float* further = out_of<float>(of_items_or_users);
    return {sums,
            sums + b_,
            out_of<float>(cf_loss),
            out_of<float>(distill_loss),
            out_of<float>(user_grad),
            fused_ ? nullptr : further,
            out_of<float>(slopes),
            fused_ ? further : nullptr};
  }

 private:
  int64_t b_;
  bool fused_;
};

// live: the sum of the mask, or empty like the mask.
const int64_t* live_of(const Tensor& live) { return live.numel() ? longs(live, "live") : nullptr; }

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fused_gradient(const Tensor& user_table, const Tensor& item_table,
                                                                  const Tensor& bias, const Tensor& users,
                                                                  const Tensor& positives, const Tensor& negatives,
                                                                  const Tensor& distilled, const Tensor& guide,
                                                                  const Tensor& mask, const Tensor& live, bool bpr,
                                                                  double lambda, double tau_learner, double tau_guide) {
  const OnDevice device(user_table);
  const auto user_rows = table_of(user_table, "user_table"), item_rows = table_of(item_table, "item_table");
  const auto batch = batch_of(users, positives, negatives, distilled, guide, mask);
  Step step(user_table, batch, user_rows.d, false);
  cuda::fused_gradient(user_rows, item_rows, bias_of(bias), batch, {bpr, lambda, tau_learner, tau_guide, 0}, live_of(live),
                       step.out(), device.stream());
  return {step.cf_loss, step.distill_loss, step.user_grad, step.of_items_or_users, step.slopes};
}

// counts [2], ones: see cuda::step_keys.
Tensor step_keys(const Tensor& users, const Tensor& positives, const Tensor& negatives, const Tensor& distilled,
                 const Tensor& guide, const Tensor& mask, int64_t n_users, int64_t n_items, Tensor counts) {
  const OnDevice device(users);
  const auto batch = batch_of(users, positives, negatives, distilled, guide, mask);
  const int64_t n = batch.b * (batch.width() + 1);
  STD_TORCH_CHECK(n <= cuda::kMostTouches, "bdkernels: batch: expected at most 2^31 - 4096 users and listed items, got ", n);
  STD_TORCH_CHECK(counts.numel() == 2 && longs(counts, "counts") != nullptr, "bdkernels: counts: expected two");
  const bool wide = n_users + n_items > std::numeric_limits<int32_t>::max();
  Tensor keys = torch::stable::new_empty(users, {n}, wide ? ScalarType::Long : ScalarType::Int);
  cuda::step_keys(batch, n_users, n_items, keys.mutable_data_ptr(), wide, out_of<int64_t>(counts), device.stream());
  return keys;
}

cuda::Touches touches_of(const Tensor& keys, const Tensor& places, int64_t n) {
  STD_TORCH_CHECK(keys.numel() == n && places.numel() == n, "bdkernels: touches: wrong size");
  const bool wide = keys.scalar_type() == ScalarType::Long;
  const void* sorted = wide ? static_cast<const void*>(longs(keys, "keys")) : data<int32_t>(keys, ScalarType::Int, "keys");
  return {sorted, wide, longs(places, "places"), n};
}

std::tuple<Tensor, Tensor> fused_step(const Tensor& user_table, const Tensor& item_table, const Tensor& bias,
                                      std::vector<Tensor> state, const Tensor& users, const Tensor& positives,
                                      const Tensor& negatives, const Tensor& distilled, const Tensor& guide,
                                      const Tensor& mask, const Tensor& live, const Tensor& keys, const Tensor& places,
                                      const Tensor& device_lr, bool bpr, double lambda, double tau_learner, double tau_guide,
                                      int64_t kind, double lr, double weight_decay, double beta1, double beta2, double eps) {
  const OnDevice device(user_table);
  const auto rows = table_of(user_table, "user_table");
  table_of(item_table, "item_table");
  bias_of(bias);
  const auto batch = batch_of(users, positives, negatives, distilled, guide, mask);
  const auto touches = touches_of(keys, places, batch.b * (batch.width() + 1));
  const Rule rule = rule_of(kind, lr, weight_decay, beta1, beta2, eps);
  const auto per_table = static_cast<size_t>(kind);
  const cuda::Training of{trained_of(user_table, state, 0, per_table), trained_of(item_table, state, per_table, per_table),
                          bias.numel() ? trained_of(bias, state, 2 * per_table, per_table) : Trained{}};
  Step step(user_table, batch, rows.d, true);
  Tensor partials = torch::stable::new_empty(user_table, {touches.n / cuda::kPiece + 1, rows.d + 1});
  cuda::fused_step(of, batch, {bpr, lambda, tau_learner, tau_guide, 0}, live_of(live), step.out(), rule,
                   device_lr.numel() ? data<float>(device_lr, ScalarType::Float, "lr") : nullptr, touches,
                   out_of<float>(partials), device.stream());
  return {step.cf_loss, step.distill_loss};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bdkernels_cuda, m) {
  m.def(
      "fused_gradient(Tensor user_table, Tensor item_table, Tensor bias, Tensor users, Tensor positives, Tensor negatives, "
      "Tensor distill_ids, Tensor guide, Tensor mask, Tensor live, bool bpr, float distill_weight, float tau_learner, "
      "float tau_guide) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "fused_step(Tensor(a!) user_table, Tensor(b!) item_table, Tensor(c!) bias, Tensor(d!)[] state, Tensor users, "
      "Tensor positives, Tensor negatives, Tensor distill_ids, Tensor guide, Tensor mask, Tensor live, Tensor keys, "
      "Tensor places, Tensor device_lr, bool bpr, float distill_weight, float tau_learner, float tau_guide, int kind, "
      "float lr, float weight_decay, float beta1, float beta2, float eps) -> (Tensor, Tensor)");
  m.def(
      "step_keys(Tensor users, Tensor positives, Tensor negatives, Tensor distill_ids, Tensor guide, Tensor mask, "
      "int n_users, int n_items, Tensor(a!) counts) -> Tensor");
}

BDKERNELS_CUDA_IMPL(m) {
  m.impl("fused_gradient", BDKERNELS_BOX(&fused_gradient));
  m.impl("fused_step", BDKERNELS_BOX(&fused_step));
  m.impl("step_keys", BDKERNELS_BOX(&step_keys));
}

}  // namespace bdkernels::binding
