// loss
#include <tuple>
#include <vector>

#include "cuda_arguments.h"
#include "step_arguments.h"

namespace bdkernels::binding {
namespace {

// Everything of a step, by the names of cuda::StepOut; the gradient of items only where it is asked for.
struct Step {
  Tensor cf_rows, distill_rows, cf_loss, distill_loss, user_grad, item_grad, slopes;

  Step(const Tensor& like, const Batch& batch, int64_t d, bool items)
      : cf_rows(torch::stable::new_empty(like, {batch.b}, ScalarType::Double)),
        distill_rows(torch::stable::new_empty(like, {batch.b}, ScalarType::Double)),
        cf_loss(torch::stable::new_empty(like, {})),
        distill_loss(torch::stable::new_empty(like, {})),
        user_grad(torch::stable::new_empty(like, {batch.b, d})),
        item_grad(torch::stable::new_empty(like, {items ? batch.b : 0, batch.width(), d})),
        slopes(torch::stable::new_empty(like, {batch.b, batch.width()})),
        items_(items) {}

  cuda::StepOut out() {
    return {out_of<double>(cf_rows),     out_of<double>(distill_rows), out_of<float>(cf_loss),
            out_of<float>(distill_loss), out_of<float>(user_grad),     items_ ? out_of<float>(item_grad) : nullptr,
            out_of<float>(slopes)};
  }

 private:
  bool items_;
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
  Step step(user_table, batch, user_rows.d, true);
  cuda::fused_gradient(user_rows, item_rows, bias_of(bias), batch, {bpr, lambda, tau_learner, tau_guide, 0}, live_of(live),
                       step.out(), device.stream());
  return {step.cf_loss, step.distill_loss, step.user_grad, step.item_grad, step.slopes};
}

cuda::Touches touches_of(const Tensor& ids, const Tensor& places, int64_t n) {
  STD_TORCH_CHECK(ids.numel() == n && places.numel() == n, "bdkernels: touches: wrong size");
  return {longs(ids, "touched ids"), longs(places, "places"), n};
}

std::tuple<Tensor, Tensor> fused_step(const Tensor& user_table, const Tensor& item_table, const Tensor& bias,
                                      std::vector<Tensor> state, const Tensor& users, const Tensor& positives,
                                      const Tensor& negatives, const Tensor& distilled, const Tensor& guide,
                                      const Tensor& mask, const Tensor& live, const Tensor& item_ids,
                                      const Tensor& item_places, const Tensor& user_ids, const Tensor& user_places, bool bpr,
                                      double lambda, double tau_learner, double tau_guide, int64_t kind, double lr,
                                      double weight_decay, double beta1, double beta2, double eps) {
  const OnDevice device(user_table);
  const auto user_rows = table_of(user_table, "user_table"), item_rows = table_of(item_table, "item_table");
  const auto batch = batch_of(users, positives, negatives, distilled, guide, mask);
  const auto items = touches_of(item_ids, item_places, batch.b * batch.width());
  const auto touched_users = touches_of(user_ids, user_places, batch.b);
  const Rule rule = rule_of(kind, lr, weight_decay, beta1, beta2, eps);
  const auto per_table = static_cast<size_t>(kind);
  const auto user_training = trained_of(user_table, state, 0, per_table);
  const auto item_training = trained_of(item_table, state, per_table, per_table);
  const auto bias_training = bias.numel() ? trained_of(bias, state, 2 * per_table, per_table) : Trained{};
  Step step(user_table, batch, user_rows.d, false);
  cuda::fused_gradient(user_rows, item_rows, bias_of(bias), batch, {bpr, lambda, tau_learner, tau_guide, 0}, live_of(live),
                       step.out(), device.stream());
  const auto* slopes = static_cast<const float*>(step.slopes.const_data_ptr());
  cuda::update_items(item_training, bias_training, user_rows, batch, slopes, rule, items, device.stream());
  const auto* user_grad = static_cast<const float*>(step.user_grad.const_data_ptr());
  cuda::update_users(user_training, user_grad, rule, touched_users, device.stream());
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
      "Tensor positives, Tensor negatives, Tensor distill_ids, Tensor guide, Tensor mask, Tensor live, Tensor item_ids, "
      "Tensor item_places, Tensor user_ids, Tensor user_places, bool bpr, float distill_weight, float tau_learner, "
      "float tau_guide, int kind, float lr, float weight_decay, float beta1, float beta2, float eps) -> (Tensor, Tensor)");
}

BDKERNELS_CUDA_IMPL(m) {
  m.impl("fused_gradient", BDKERNELS_BOX(&fused_gradient));
  m.impl("fused_step", BDKERNELS_BOX(&fused_step));
}

}  // namespace bdkernels::binding
