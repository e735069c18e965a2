"""Finds what would make the host wait for a GPU, on CPU tensors: operators whose result the host has to read."""

from typing import Any

import torch
from inside import Inside

# aten operators by name, without the overload: values for the host, or an output whose size depends on values.
WAITS = {
    "_local_scalar_dense", "equal", "is_nonzero", "item", "masked_select", "nonzero", "bincount", "unique_consecutive",
    "unique_dim", "_unique", "_unique2", "allclose", "histc",
}  # fmt: skip


class NoWait(Inside):
    """Within it an operator that would wait for a GPU raises AssertionError; `tolist` and `numpy` of a CPU tensor go unseen."""

    def see(self, func: Any, args: Any, kwargs: Any) -> None:
        name = func._schema.name.removeprefix("aten::")
        assert name not in WAITS, f"{func} waits for the device"
        if name == "_to_copy":
            assert kwargs.get("device") != torch.device("cpu"), f"{func} to the CPU waits for the device"
        if name == "repeat_interleave":
            assert kwargs.get("output_size") is not None, f"{func} without output_size waits for the device"
        if name in ("index", "index_put", "index_put_"):
            masks = [i for i in args[1] if isinstance(i, torch.Tensor) and i.dtype == torch.bool]
            assert not masks, f"{func} with a mask waits for the device"
