"""What `sample` has to be told, where a test does not care."""

from typing import Any

import torch

import bdkernels as bd


def numbered(f: bd.Factors, **other: Any) -> dict[str, Any]:
    """Rows that are the users 0, 1, ... at step 0."""
    return {"user_ids": torch.arange(len(f.user_factors), device=f.user_factors.device), "step": 0} | other
