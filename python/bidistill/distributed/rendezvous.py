"""How the processes that torchrun started find each other, again after a restart."""

from __future__ import annotations

import atexit
import os
import time
import uuid
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from bidistill.errors import UserError


def join(device: str, seconds: int) -> None:
    """Make the default group of torch.distributed, as the environment describes it.

    Args:
        device: what computes. CPUs talk over gloo, and GPUs over NCCL besides.
        seconds: after which a collective fails that not all processes take part in.

    Raises:
        UserError: the processes do not meet in that time.
    """
    cuda, wait = torch.device(device).type == "cuda", timedelta(seconds=seconds)
    if cuda and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=wait))
        # torchrun keeps its store over restarts: without a prefix of their own, processes would find the addresses of lost ones.
        store = dist.PrefixStore(f"bidistill/{common_name(store, rank, size, seconds)}", store)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)
        atexit.register(leave)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the processes do not find each other ({reason}): start all of them with torchrun") from error


def leave() -> None:
    """Take down the default group, if it is there still: threads of it that outlive Python abort the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def common_name(store: Any, rank: int, size: int, seconds: float) -> str:
    """A new name that these processes share, by a store in which others may have left theirs.

    Each one asks under a word of its own, which nobody has used before; the first answers until all have the name.
    """
    mine = uuid.uuid4().hex
    if rank:
        store.set(f"bidistill/ask/{rank}", mine)
        name: str = store.get(f"bidistill/answer/{mine}").decode()
        store.set(f"bidistill/{name}/{rank}", "")
        return name
    waiting, until = set(range(1, size)), time.monotonic() + seconds
    while waiting:
        for other in sorted(waiting):
            if store.check([f"bidistill/{mine}/{other}"]):
                waiting.discard(other)
            elif store.check([f"bidistill/ask/{other}"]):
                store.set(f"bidistill/answer/{store.get(f'bidistill/ask/{other}').decode()}", mine)
        if time.monotonic() > until:
            raise RuntimeError(f"ranks {', '.join(map(str, sorted(waiting)))} did not come within {seconds} seconds")
        time.sleep(0.01)
    return mine
