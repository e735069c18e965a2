"""A million items end to end, as a user does it: training with exact draws, a kill and a resume, in little memory."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bidistill import generate, split
from bidistill.runs.checkpoint import load_checkpoint
from bidistill.runs.folder import RunFolder

import bdkernels as bd
from bdkernels import backends

USERS, ITEMS, ROWS = 3000, 1_000_000, 60_000
SETTINGS = {
    "teacher-dim": 16,
    "student-dim": 4,
    "teacher-optimizer": "sparse_adam",
    "student-optimizer": "sparse_adam",
    "train-batch-size": 2048,
    "train-pretrain-epochs": 1,
    "train-epochs": 2,
    "train-patience": 0,
    "distill-resample": "gradual",
    "distill-resample-every": 2,
    "distill-pool": 8,
    "eval-users": 256,
    "eval-ks": 50,
    "run-checkpoint-steps": 10,
    "run-threads": 2,
}
FLAGS = [f"--{name}={value}" for name, value in SETTINGS.items()]
# Tables, optimizers and best states take 0.35 GB, Python and torch 0.4; scores of all users and items would take 12 GB.
MOST_GB = 1.6


def bidistill(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "bidistill", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(child: subprocess.Popen) -> tuple[int, str, float]:
    """Exit status, output and peak resident GB."""
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, output, usage.ru_maxrss * 1024 / 1e9


def test_a_million_items(tmp_path):
    if (reason := backends.missing("cpu")) is not None:
        pytest.skip(f"backend cpu: {reason}")
    data, run = tmp_path / "split.npz", tmp_path / "run"
    split(generate(USERS, ITEMS, ROWS, seed=1)[0]).save(data)  # not by a file of rows: most items have none
    child = bidistill("train", "--data-train-path", str(data), "--run-out", str(run), *FLAGS)
    while child.poll() is None and not halfway(run):
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    status, output, peak = finish(child)
    assert status == -signal.SIGKILL, output
    print(f"killed in the joint phase: peak {peak:.2f} GB")
    assert peak < MOST_GB
    status, output, peak = finish(bidistill("train", "--resume", str(run)))
    assert status == 0, output
    print(f"resumed: peak {peak:.2f} GB")
    assert peak < MOST_GB

    tensors, state = load_checkpoint(run / "checkpoint")
    assert (state["progress"]["phase"], state["progress"]["epoch"]) == ("joint", 2)
    rows = [row for row in state["history"] if row["phase"] == "joint"]
    assert rows[-1]["teacher/loss_cf"] < rows[1]["teacher/loss_cf"]
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert metrics["student"]["test"]["users"] == 256
    drawn_items_are_unseen(run, tensors["method.pool"])


def halfway(run: Path) -> bool:
    """A checkpoint in the joint phase, within an epoch, with some pools filled and some not."""
    try:
        place = json.loads((run / "checkpoint" / "state.json").read_text())["state"]["progress"]
    except (OSError, ValueError):
        return False
    return place["phase"] == "joint" and place["step"] > 0


def drawn_items_are_unseen(run: Path, pool: torch.Tensor) -> None:
    """Everyone has a whole pool of items that they have not had."""
    parts = RunFolder(run).split()
    assert parts.n_items == ITEMS
    assert pool.shape == (USERS, 16) and (pool >= 0).all() and (pool < ITEMS).all()
    had = parts.train_users * ITEMS + parts.train_items
    drawn = torch.arange(USERS)[:, None] * ITEMS + pool
    assert not np.isin(drawn.numpy(), had).any()


def test_ranks_at_a_million(two_threads):
    """Exact ranks of listed items, against a float64-free count over all scores, one user at a time."""
    torch.manual_seed(3)
    f = bd.Factors(torch.randn(4, 16), torch.randn(ITEMS, 16), torch.randn(ITEMS))
    ids = torch.randint(ITEMS, (4, 8))
    every = torch.arange(ITEMS)[None]
    found = bd.rank(f, ids)
    for row in range(4):
        scores = bd.score(f._replace(user_factors=f.user_factors[row : row + 1]), every)[0]
        at = scores[ids[row]][:, None]
        before = (scores > at) | ((scores == at) & (every < ids[row][:, None]))
        assert torch.equal(found[row], 1 + before.sum(1))
