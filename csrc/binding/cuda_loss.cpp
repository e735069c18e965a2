// loss
#include <limits>
#include <tuple>
#include <vector>

#include "cuda_arguments.h"
#include "step_arguments.h"

namespace bdkernels::binding {
namespace {

Batch batch_of(const Tensor& users, const Tensor& positives, const Tensor& negatives, const Tensor& distilled,
               const Tensor& guide, const Optional& mask) {
  Batch out = binding::batch_of(users, positives, negatives, distilled, guide);
  if (mask) out.mask = data<bool>(*mask, ScalarType::Bool, "distill_mask");
  return out;
}

const float* bias_of(const Optional& bias) { return bias ? binding::bias_of(*bias) : nullptr; }

// counts: of cuda::step_keys.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fused_gradient(
    const Tensor& user_table, const Tensor& item_table, const Optional& bias, const Tensor& users, const Tensor& positives,
    const Tensor& negatives, const Tensor& distilled, const Tensor& guide, const Optional& mask, const Tensor& counts,
    int64_t cf, int64_t distill, double lambda, double tau_learner, double tau_guide) {
  const OnDevice device(user_table);
  const auto user_rows = table_of(user_table, "user_table"), item_rows = table_of(item_table, "item_table");
  const auto batch = batch_of(users, positives, negatives, distilled, guide, mask);
  const int64_t b = batch.b, width = batch.width(), d = user_rows.d;
  Tensor cf_loss = torch::stable::new_empty(user_table, {}), distill_loss = torch::stable::new_empty(user_table, {});
  Tensor user_grad = torch::stable::new_empty(user_table, {b, d});
  Tensor item_grad = torch::stable::new_empty(user_table, {b, width, d});
  Tensor slopes = torch::stable::new_empty(user_table, {b, width});
  const auto [memory, sums] = scratch<double>(user_table, {2 * b});
  cuda::fused_gradient(user_rows, item_rows, bias_of(bias), batch, objective_of(cf, distill, lambda, tau_learner, tau_guide),
                       longs_of(counts, 1, "counts"),
                       {sums, sums + b, out_of<float>(cf_loss), out_of<float>(distill_loss), out_of<float>(user_grad),
                        out_of<float>(item_grad), out_of<float>(slopes), nullptr},
                       device.stream());
  return {cf_loss, distill_loss, user_grad, item_grad, slopes};
}

int64_t touches_of(const Batch& batch) {
  const int64_t n = batch.b * (batch.width() + 1);
  STD_TORCH_CHECK(n <= cuda::kMostTouches, "bdkernels: batch: expected at most 2^31 - 4096 users and listed items, got ", n);
  return n;
}

// counts [2], ones: see cuda::step_keys.
Tensor step_keys(const Tensor& users, const Tensor& positives, const Tensor& negatives, const Tensor& distilled,
                 const Tensor& guide, const Optional& mask, int64_t n_users, int64_t n_items, Tensor counts) {
  const OnDevice device(users);
  const auto batch = batch_of(users, positives, negatives, distilled, guide, mask);
  const bool wide = n_users + n_items > std::numeric_limits<int32_t>::max();
  Tensor keys = torch::stable::new_empty(users, {touches_of(batch)}, wide ? ScalarType::Long : ScalarType::Int);
  cuda::step_keys(batch, n_users, n_items, keys.mutable_data_ptr(), wide, longs_of(counts, 2, "counts"), device.stream());
  return keys;
}

// The same without the keys.
void step_counts(const Tensor& users, const Tensor& positives, const Tensor& negatives, const Tensor& distilled,
                 const Tensor& guide, const Optional& mask, int64_t n_users, int64_t n_items, Tensor counts) {
  const OnDevice device(users);
  const auto batch = batch_of(users, positives, negatives, distilled, guide, mask);
  cuda::step_keys(batch, n_users, n_items, nullptr, false, longs_of(counts, 2, "counts"), device.stream());
}

cuda::Touches touches_of(const Batch& batch, const Tensor& keys, const Tensor& places) {
  const int64_t n = touches_of(batch);
  STD_TORCH_CHECK(keys.numel() == n && places.numel() == n, "bdkernels: touches: wrong size");
  const bool wide = keys.scalar_type() == ScalarType::Long;
  const void* sorted = wide ? static_cast<const void*>(longs(keys, "keys")) : data<int32_t>(keys, ScalarType::Int, "keys");
  return {sorted, wide, longs(places, "places"), n};
}

std::tuple<Tensor, Tensor> fused_step(const Tensor& user_table, const Tensor& item_table, const Optional& bias,
                                      std::vector<Tensor> state, const Tensor& users, const Tensor& positives,
                                      const Tensor& negatives, const Tensor& distilled, const Tensor& guide,
                                      const Optional& mask, const Tensor& counts, const Tensor& keys, const Tensor& places,
                                      const Optional& device_lr, const Optional& count, int64_t cf, int64_t distill,
                                      double lambda, double tau_learner, double tau_guide, int64_t kind, double lr,
                                      double weight_decay, double beta1, double beta2, double eps) {
  const OnDevice device(user_table);
  const int64_t d = table_of(user_table, "user_table").d;
  table_of(item_table, "item_table");
  bias_of(bias);
  const auto batch = batch_of(users, positives, negatives, distilled, guide, mask);
  const auto touches = touches_of(batch, keys, places);
  const Rule rule = rule_of(kind, lr, weight_decay, beta1, beta2, eps);
  const auto per_table = static_cast<size_t>(kind);
  const cuda::Training of{trained_of(user_table, state, 0, per_table), trained_of(item_table, state, per_table, per_table),
                          bias ? trained_of(*bias, state, 2 * per_table, per_table) : Trained{}};
  Tensor cf_loss = torch::stable::new_empty(user_table, {}), distill_loss = torch::stable::new_empty(user_table, {});
  const int64_t b = batch.b;
  const auto [memory, sums, rate, user_grad, user_rows, slopes, partials] =
      scratch<double, float, float, float, float, float>(
          user_table, {2 * b, 1, b * d, b * d, b * batch.width(), (touches.n / cuda::kPiece + 1) * (d + 1)});
  const float* lr_at = device_lr && !count ? data<float>(*device_lr, ScalarType::Float, "lr") : nullptr;
  if (count) {
    const double* given = device_lr ? data<double>(*device_lr, ScalarType::Double, "lr") : nullptr;
    cuda::rate({lr, beta1, beta2, given, data<double>(*count, ScalarType::Double, "count")}, rate, device.stream());
    lr_at = rate;
  }
  cuda::fused_step(
      of, batch, objective_of(cf, distill, lambda, tau_learner, tau_guide), longs_of(counts, 1, "counts"),
      {sums, sums + b, out_of<float>(cf_loss), out_of<float>(distill_loss), user_grad, nullptr, slopes, user_rows}, rule,
      lr_at, touches, partials, device.stream());
  return {cf_loss, distill_loss};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bdkernels_cuda, m) {
  m.def(
      "fused_gradient(Tensor user_table, Tensor item_table, Tensor? bias, Tensor users, Tensor positives, Tensor negatives, "
      "Tensor distill_ids, Tensor guide, Tensor? mask, Tensor counts, int cf, int distill_kind, float distill_weight, float "
      "tau_learner, "
      "float tau_guide) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "fused_step(Tensor(a!) user_table, Tensor(b!) item_table, Tensor(c!)? bias, Tensor(d!)[] state, Tensor users, "
      "Tensor positives, Tensor negatives, Tensor distill_ids, Tensor guide, Tensor? mask, Tensor counts, Tensor keys, "
      "Tensor places, Tensor? device_lr, Tensor? count, int cf, int distill_kind, float distill_weight, float tau_learner, "
      "float "
      "tau_guide, int kind, "
      "float lr, float weight_decay, float beta1, float beta2, float eps) -> (Tensor, Tensor)");
  m.def(
      "step_keys(Tensor users, Tensor positives, Tensor negatives, Tensor distill_ids, Tensor guide, Tensor? mask, "
      "int n_users, int n_items, Tensor(a!) counts) -> Tensor");
  m.def(
      "step_counts(Tensor users, Tensor positives, Tensor negatives, Tensor distill_ids, Tensor guide, Tensor? mask, "
      "int n_users, int n_items, Tensor(a!) counts) -> ()");
}

BDKERNELS_CUDA_IMPL(m) {
  m.impl("fused_gradient", BDKERNELS_BOX(&fused_gradient));
  m.impl("fused_step", BDKERNELS_BOX(&fused_step));
  m.impl("step_keys", BDKERNELS_BOX(&step_keys));
  m.impl("step_counts", BDKERNELS_BOX(&step_counts));
}

}  // namespace bdkernels::binding
