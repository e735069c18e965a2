"""What an optimizer does to the rows that a step touches; the formulas and their sources are in `bdkernels.optim`."""

from typing import Any, NamedTuple

RULES = ("sgd", "adagrad", "adam")  # the index is how many state tensors a table has


class Rule(NamedTuple):
    """What one step does to a touched row; of "adam" lr is lr_t. Unused numbers are 0."""

    kind: str
    lr: float
    weight_decay: float
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0


def rate(rule: Rule, lr: Any, count: Any) -> Any:
    """lr of a step after `count` others: of "adam" lr_t. Either may be a tensor [] float64, and then it is one."""
    if rule.kind != "adam":
        return lr
    t = count + 1
    return lr * (1 - rule.beta2**t) ** 0.5 / (1 - rule.beta1**t)
