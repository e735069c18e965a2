"""A round of the sampler over several processes: what it sends, what it waits for, and how it fails. Over gloo."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import rounds

from bdkernels.backends import reference
from bdkernels.distributed.sampler import ShardedItems
from bdkernels.distributed.shard import Catalog

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, dict[str, str]]:
    """Of each process: the checks that ended, and their errors, "" if none."""
    folder = tmp_path_factory.mktemp("rounds")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, str(HERE / "rounds.py"), str(folder)], env=environment, start_new_session=True
    )
    try:
        started.wait(150)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    files = {rank: folder / f"{rank}.json" for rank in range(rounds.PROCESSES)}
    return {rank: json.loads(path.read_text()) for rank, path in files.items() if path.exists()}


@pytest.mark.parametrize("size", rounds.WORLDS)
@pytest.mark.parametrize("check", [f.__name__ for f in rounds.CHECKS])
def test_rounds(found, check, size):
    for rank in range(size):
        error = found.get(rank, {}).get(f"{check}: {size}", "not run: this process failed before, or died")
        assert not error, f"rank {rank}: {error}"


def test_a_process_is_lost_in_a_ring(found):
    errors = {rank: done.get("lost", "did not end") for rank, done in found.items()}
    assert errors == {0: "", 1: "did not end", 2: "", 3: ""}


def test_users_in_flight_grow_with_the_processes():
    """Up to a bound on the rows of all, which each process holds."""
    for world, each in ((1, 1024), (2, 1024), (16, 1024), (64, 256), (1 << 20, 1)):
        exchange = cast(Any, SimpleNamespace(world=world))
        assert ShardedItems(exchange, reference.STEPS, Catalog([0, 5])).at_once(8) == each
