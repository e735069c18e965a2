"""Sharded operators in processes of their own, over gloo: the same bits as on one process, one error for all, and no hang."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import shards
import torch.distributed as dist

from bdkernels.distributed import Shards

HERE = Path(__file__).resolve().parent


def errors(what: str, world: int, folder: Path, seconds: float) -> dict[int, dict[str, str]]:
    """What went wrong on each process that lived to say so."""
    command = [sys.executable, str(HERE / "shards.py"), what]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([*command, str(r), str(world), str(folder)], env=environment) for r in range(world)]
    try:
        for process in started:
            process.wait(seconds)
    finally:
        for process in started:
            process.kill()
            process.wait()
    return {r: json.loads(path.read_text()) for r in range(world) if (path := folder / f"{r}.json").exists()}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, dict[str, str]]:
    return errors("checks", 4, tmp_path_factory.mktemp("checks"), 240)


@pytest.mark.parametrize("layout", shards.LAYOUTS)
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("check", [f.__name__ for f in shards.CHECKS])
def test_world(found, check, world, layout):
    assert found.keys() == {0, 1, 2, 3}, "a process died"
    texts = {rank: text for rank, all_ in found.items() if (text := all_.get(f"{check}-{world}-{layout}"))}
    assert not texts, "\n".join(f"rank {rank}: {text}" for rank, text in texts.items())


@pytest.mark.parametrize("way", ["exit", "kill", "absent"])
def test_a_process_is_lost(way, tmp_path):
    """The others say which, within the time-out, and do not wait for ever."""
    told = errors(way, 3, tmp_path, 60)
    assert told == {0: {}, 2: {}} | ({1: {}} if way == "absent" else {})


def test_no_process_group():
    assert not dist.is_initialized()
    with pytest.raises(RuntimeError, match="expected a process group, got none; call .*init_process_group"):
        Shards(3)
