// loss
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <tuple>
#include <vector>

#include "../cpu/kernels.h"
#include "step_arguments.h"

namespace bdkernels::binding {
namespace {

constexpr int64_t kRows = 16, kTouches = 256;  // of a task, at least

struct Losses {
  float cf, distill;

  bool finite() const { return std::isfinite(cf) && std::isfinite(distill); }
  std::tuple<Tensor, Tensor> as(const Tensor& like) const { return {scalar(like, cf), scalar(like, distill)}; }

 private:
  static Tensor scalar(const Tensor& like, float value) {
    Tensor out = torch::stable::new_empty(like, {});
    *static_cast<float*>(out.mutable_data_ptr()) = value;
    return out;
  }
};

// Of what the distillation loss is the mean.
int64_t counted(const Batch& batch, DistillLoss kind) {
  if (kind == DistillLoss::kListwise) return batch.b;
  const int64_t all = batch.b * batch.k;
  return batch.mask ? std::accumulate(batch.mask, batch.mask + all, int64_t{0}) : all;
}

// Losses of the batch, from the rows' in their order; user_grad [b, d] and slopes [b, width] are filled.
Losses losses(const Rows& users, const Rows& items, const float* bias, const Batch& batch, Objective objective,
              float* user_grad, float* slopes) {
  objective.count = static_cast<double>(std::max<int64_t>(1, counted(batch, objective.distill)));
  std::vector<double> cf(batch.b), distill(batch.b);
  const cpu::RowLosses out{cf.data(), distill.data(), user_grad, slopes};
  parallel_for(0, batch.b, kRows,
               [&](int64_t a, int64_t b) { cpu::step_rows(users, items, bias, batch, objective, a, b, out); });
  const double rows = batch.b > 0 ? static_cast<double>(batch.b) : 1.0;
  return {static_cast<float>(std::accumulate(cf.begin(), cf.end(), 0.0) / rows),
          static_cast<float>(std::accumulate(distill.begin(), distill.end(), 0.0) / objective.count)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fused_gradient(const Tensor& user_table, const Tensor& item_table,
                                                                  const Tensor& bias, const Tensor& users,
                                                                  const Tensor& positives, const Tensor& negatives,
                                                                  const Tensor& distilled, const Tensor& guide,
                                                                  const Tensor& mask, int64_t cf, int64_t distill,
                                                                  double lambda, double tau_learner, double tau_guide) {
  const auto user_rows = table_of(user_table, "user_table"), item_rows = table_of(item_table, "item_table");
  const auto batch = batch_of(users, positives, negatives, distilled, guide, mask);
  Tensor user_grad = torch::stable::new_empty(user_table, {batch.b, user_rows.d});
  Tensor item_grad = torch::stable::new_empty(user_table, {batch.b, batch.width(), user_rows.d});
  Tensor slopes = torch::stable::new_empty(user_table, {batch.b, batch.width()});
  float* slope = static_cast<float*>(slopes.mutable_data_ptr());
  float* grad = static_cast<float*>(item_grad.mutable_data_ptr());
  const auto objective = objective_of(cf, distill, lambda, tau_learner, tau_guide);
  const auto [cf_loss, distill_loss] =
      losses(user_rows, item_rows, bias_of(bias), batch, objective, static_cast<float*>(user_grad.mutable_data_ptr()), slope)
          .as(user_table);
  parallel_for(0, batch.b, kRows, [&](int64_t a, int64_t b) { cpu::item_grads(user_rows, batch, slope, a, b, grad); });
  return {cf_loss, distill_loss, user_grad, item_grad, slopes};
}

// Where the losses are not finite nothing is changed.
std::tuple<Tensor, Tensor> fused_step(const Tensor& user_table, const Tensor& item_table, const Tensor& bias,
                                      std::vector<Tensor> state, const Tensor& users, const Tensor& positives,
                                      const Tensor& negatives, const Tensor& distilled, const Tensor& guide,
                                      const Tensor& mask, int64_t cf, int64_t distill, double lambda, double tau_learner,
                                      double tau_guide, int64_t kind, double lr, double weight_decay, double beta1,
                                      double beta2, double eps) {
  const auto user_rows = table_of(user_table, "user_table"), item_rows = table_of(item_table, "item_table");
  const float* item_bias = bias_of(bias);
  const auto batch = batch_of(users, positives, negatives, distilled, guide, mask);
  const Rule rule = rule_of(kind, lr, weight_decay, beta1, beta2, eps);
  const auto per_table = static_cast<size_t>(kind);
  const auto user_training = trained_of(user_table, state, 0, per_table);
  const auto item_training = trained_of(item_table, state, per_table, per_table);

  const auto user_grad = std::make_unique_for_overwrite<float[]>(batch.b * user_rows.d);
  const auto slopes = std::make_unique_for_overwrite<float[]>(batch.b * batch.width());
  const Losses out = losses(user_rows, item_rows, item_bias, batch,
                            objective_of(cf, distill, lambda, tau_learner, tau_guide), user_grad.get(), slopes.get());
  if (!out.finite()) return out.as(user_table);

  // Items first: their gradients need the old user rows.
  const auto items = cpu::sort_touches(cpu::listed_items(batch).data(), batch.b * batch.width(), item_rows.n);
  parallel_for(0, items.size(), kTouches, [&](int64_t a, int64_t b) {
    cpu::update_items(item_training, user_rows, batch, slopes.get(), rule, items, a, b);
  });
  if (item_bias) {
    const auto bias_training = trained_of(bias, state, 2 * per_table, per_table);
    parallel_for(0, items.size(), kTouches,
                 [&](int64_t a, int64_t b) { cpu::update_own(bias_training, slopes.get(), rule, items, a, b); });
  }
  const auto touched = cpu::sort_touches(batch.users, batch.b, user_rows.n);
  parallel_for(0, touched.size(), kTouches,
               [&](int64_t a, int64_t b) { cpu::update_own(user_training, user_grad.get(), rule, touched, a, b); });
  return out.as(user_table);
}

// grads [n, d] of the rows ids [n] of one table.
void update_rows(Tensor table, std::vector<Tensor> state, const Tensor& ids, const Tensor& grads, int64_t kind, double lr,
                 double weight_decay, double beta1, double beta2, double eps) {
  const Rule rule = rule_of(kind, lr, weight_decay, beta1, beta2, eps);
  const auto training = trained_of(table, state, 0, static_cast<size_t>(kind));
  const float* grad = data<float>(grads, ScalarType::Float, "grads");
  STD_TORCH_CHECK(grads.numel() == ids.numel() * training.d, "bdkernels: grads: wrong size");
  const auto touched = cpu::sort_touches(longs(ids, "ids"), ids.numel(), training.n);
  parallel_for(0, touched.size(), kTouches,
               [&](int64_t a, int64_t b) { cpu::update_own(training, grad, rule, touched, a, b); });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bdkernels_cpu, m) {
  m.def(
      "fused_gradient(Tensor user_table, Tensor item_table, Tensor bias, Tensor users, Tensor positives, Tensor negatives, "
      "Tensor distill_ids, Tensor guide, Tensor mask, int cf, int distill_kind, float distill_weight, float tau_learner, "
      "float tau_guide) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "fused_step(Tensor(a!) user_table, Tensor(b!) item_table, Tensor(c!) bias, Tensor(d!)[] state, Tensor users, "
      "Tensor positives, Tensor negatives, Tensor distill_ids, Tensor guide, Tensor mask, int cf, int distill_kind, "
      "float distill_weight, float tau_learner, float tau_guide, int kind, float lr, float weight_decay, float beta1, "
      "float beta2, float eps) -> (Tensor, Tensor)");
  m.def(
      "update_rows(Tensor(a!) table, Tensor(b!)[] state, Tensor ids, Tensor grads, int kind, float lr, float weight_decay, "
      "float beta1, float beta2, float eps) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(bdkernels_cpu, CPU, m) {
  m.impl("fused_gradient", BDKERNELS_BOX(&fused_gradient));
  m.impl("fused_step", BDKERNELS_BOX(&fused_step));
  m.impl("update_rows", BDKERNELS_BOX(&update_rows));
}

}  // namespace bdkernels::binding
