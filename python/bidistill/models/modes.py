"""Models while they are asked for scores that nothing learns from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bidistill.models.base import Recommender


@contextmanager
def evaluating(*models: Recommender) -> Iterator[None]:
    """Inside, the models compute without gradient and in evaluation mode, so that dropout and the like are off.

    Afterwards each of their modules has the mode that it had before.
    """
    before = {model: [(module, module.training) for module in model.modules()] for model in models}
    before = {model: modes for model, modes in before.items() if any(mode for _, mode in modes)}
    for model in before:
        model.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for model, modes in before.items():
            model.train(True)
            for module, mode in modes:
                module.training = mode
