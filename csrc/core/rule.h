// How an optimizer changes one row that a step touches; bdkernels/optim.py names the sources of the rules.
#pragma once
#include <cstdint>

namespace bdkernels {

// The order of bdkernels.optim.RULES; the value is also how many numbers a rule keeps of each one that it trains.
enum class RuleKind : int32_t { kSgd, kAdagrad, kAdam };

struct Rule {
  RuleKind kind;
  float lr, weight_decay;
  float new1, new2;  // Adam: 1 - beta, the weight of the new gradient in each moment
  float eps;
};

}  // namespace bdkernels
