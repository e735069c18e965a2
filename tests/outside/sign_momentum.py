"""An optimizer of one's own: each number moves by lr in the direction of its average gradient."""

from dataclasses import dataclass
from typing import Any

import torch
from bidistill import register_optimizer


@dataclass(frozen=True)
class Settings:
    beta: float = 0.9


class SignMomentum(torch.optim.Optimizer):
    """x -= lr * sign(m), with m the exponential average of the gradients."""

    def __init__(self, params, lr, beta):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure=None) -> Any:
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is not None:
                    m = self.state[x].setdefault("average", torch.zeros_like(x))
                    m.lerp_(x.grad, 1 - group["beta"])
                    x.sub_(m.sign(), alpha=group["lr"])


register_optimizer("sign_momentum", SignMomentum, Settings)
