"""What an optimizer does to the rows that a step touches; the formulas and their sources are in `bdkernels.optim`."""

from typing import NamedTuple

RULES = ("sgd", "adagrad", "adam")  # the index is how many state tensors a table has


class Rule(NamedTuple):
    """What one step does to a touched row; of "adam" lr is lr_t. Unused numbers are 0."""

    kind: str
    lr: float
    weight_decay: float
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
