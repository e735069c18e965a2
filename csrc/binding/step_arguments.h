// What the bindings of the stage loss share.
#pragma once
#include <vector>

#include "../core/rule.h"
#include "../core/step.h"
#include "arguments.h"

namespace bdkernels::binding {

inline Rows table_of(const Tensor& t, const char* name) {
  const bool rows = t.dim() == 2 && (t.stride(1) == 1 || t.size(1) <= 1 || t.size(0) == 0);
  STD_TORCH_CHECK(rows && t.scalar_type() == ScalarType::Float, "bdkernels: ", name, ": expected float32 rows");
  return {static_cast<const float*>(t.const_data_ptr()), t.size(0), t.size(1), t.stride(0)};
}

// bias and mask are optional: an empty tensor stands for None.
inline const float* bias_of(const Tensor& bias) {
  return bias.numel() ? data<float>(bias, ScalarType::Float, "item_bias") : nullptr;
}

inline Batch batch_of(const Tensor& users, const Tensor& positives, const Tensor& negatives, const Tensor& distilled,
                      const Tensor& guide) {
  return {longs(users, "users"),
          longs(positives, "positives"),
          longs(negatives, "negatives"),
          longs(distilled, "distill_ids"),
          data<float>(guide, ScalarType::Float, "guide_scores"),
          nullptr,
          users.size(0),
          negatives.size(1),
          distilled.size(1)};
}

inline Batch batch_of(const Tensor& users, const Tensor& positives, const Tensor& negatives, const Tensor& distilled,
                      const Tensor& guide, const Tensor& mask) {
  Batch out = batch_of(users, positives, negatives, distilled, guide);
  if (mask.numel()) out.mask = data<bool>(mask, ScalarType::Bool, "distill_mask");
  return out;
}

// A table [n, d] or [n] whose state is per_table tensors of the same size, from state[first] on.
inline Trained trained_of(Tensor table, const std::vector<Tensor>& state, size_t first, size_t per_table) {
  STD_TORCH_CHECK(first + per_table <= state.size() && per_table <= 2, "bdkernels: state: too few tensors");
  float* kept[2] = {nullptr, nullptr};
  for (size_t i = 0; i < per_table; ++i) {
    Tensor each = state[first + i];
    data<float>(each, ScalarType::Float, "state");
    STD_TORCH_CHECK(each.numel() == table.numel(), "bdkernels: state: wrong size");
    kept[i] = static_cast<float*>(each.mutable_data_ptr());
  }
  float* rows = static_cast<float*>(table.mutable_data_ptr());
  if (table.dim() == 1) return {rows, table.size(0), 1, 1, kept[0], kept[1]};
  return {rows, table.size(0), table.size(1), table.stride(0), kept[0], kept[1]};
}

// `count` is for the kernels to set.
inline Objective objective_of(int64_t cf, int64_t distill, double lambda, double tau_learner, double tau_guide) {
  return {static_cast<CfLoss>(cf), static_cast<DistillLoss>(distill), lambda, tau_learner, tau_guide, 1};
}

inline Rule rule_of(int64_t kind, double lr, double weight_decay, double beta1, double beta2, double eps) {
  return {static_cast<RuleKind>(kind),   static_cast<float>(lr),        static_cast<float>(weight_decay),
          static_cast<float>(1 - beta1), static_cast<float>(1 - beta2), static_cast<float>(eps)};
}

}  // namespace bdkernels::binding
