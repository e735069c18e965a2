"""Watches torch's operators one by one, those inside of others too."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

OURS = ("bdkernels", "bdkernels_cuda")


class Inside(TorchDispatchMode):
    """Within it `see` is called for each operator of torch that does something itself: it goes into our own operators, and into
    those of torch's that are made of others.
    """

    def see(self, func: Any, args: Any, kwargs: Any) -> None:
        raise NotImplementedError

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace in OURS:
            on_gpu = any(a.is_cuda for a in args if isinstance(a, torch.Tensor))
            key = torch._C.DispatchKey.CUDA if on_gpu else torch._C.DispatchKey.CPU
            with self:
                return func.redispatch(torch._C.DispatchKeySet(key), *args, **kwargs)
        with self:
            made_of_others = func.decompose(*args, **kwargs)
        if made_of_others is not NotImplemented:
            return made_of_others
        self.see(func, args, kwargs)
        return func(*args, **kwargs)
