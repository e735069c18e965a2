"""Sharded operators in processes of their own, over gloo: the same bits as on one process, one error for all, and no hang."""

import json
import os
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from pathlib import Path

import pytest
import shards
import torch
import torch.distributed as dist

from bdkernels import Factors, checks
from bdkernels.distributed import ShardedCatalog, ShardError

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, dict[str, str]]:
    """Of each process: the checks that ended, and their errors, "" if none."""
    folder, world = tmp_path_factory.mktemp("shards"), 4
    command, environment = [sys.executable, str(HERE / "shards.py")], os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.Popen([*command, str(world), str(folder)], env=environment, start_new_session=True)
    try:
        started.wait(150)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    return {r: json.loads(path.read_text()) for r in range(world) if (path := folder / f"{r}.json").exists()}


@pytest.mark.parametrize("world", shards.WORLDS)
@pytest.mark.parametrize("check", [f.__name__ for f in shards.CHECKS])
def test_world(found, check, world):
    for rank in range(len(shards.WORLDS[world])):
        error = found.get(rank, {}).get(f"{check}: {world}", "not run: this process failed before, or died")
        assert not error, f"rank {rank}: {error}"


@pytest.mark.parametrize("way", ["absent", "killed"])
def test_a_process_is_lost(found, way):
    """The others say which, within the time-out, and do not wait for ever."""
    for rank in (0, 2):
        error = found.get(rank, {}).get(way, "not run: this process failed before, or died")
        assert not error, f"rank {rank}: {error}"


def test_values_are_asked_for(monkeypatch):
    """What waits for a GPU anyway learns at once that an argument is wrong; here as if the CPU were one."""
    monkeypatch.setattr(checks, "ASSERTS", ("cpu",))
    with pytest.raises(RuntimeError, match="ids: expected ids in"):  # torch's assertion
        checks.ids_values("ids", torch.tensor([9]), 5)
    with checks.asked(), pytest.raises(ValueError, match="ids: expected ids in .0, 5., got 9 to 9"):
        checks.ids_values("ids", torch.tensor([9]), 5)
    for at in (7, torch.tensor(7)):
        with checks.asked(), pytest.raises(checks.NaNScore, match="user row 2, item 101"):
            checks.no_nan_at(at, 3, 100)


def test_no_process_group():
    assert not dist.is_initialized()
    with pytest.raises(RuntimeError, match="expected a process group, got none; call .*init_process_group"):
        ShardedCatalog(3)


def test_a_destroyed_group_is_let_go():
    """Its threads would outlive Python, and abort the process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    shards, group = ShardedCatalog(3), weakref.ref(dist.group.WORLD)
    factors = Factors(torch.ones(1, 2), torch.ones(3, 2))
    assert shards.rank(factors, torch.tensor([[2]])).item() == 3
    dist.destroy_process_group()
    assert group() is None
    with pytest.raises(ShardError, match="the process group was destroyed: make another"):
        shards.rank(factors, torch.tensor([[2]]))
