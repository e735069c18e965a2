"""Training over several processes, over gloo: the run of one process but for rounding, checkpoints, failures."""

import csv
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import sharded
import torch
from bidistill import Trainer
from bidistill.files.records import read_record
from bidistill.runs.checkpoint import load_model, save_model
from bidistill.runs.records import Finished
from runs import timeless

HERE = Path(__file__).resolve().parent
NAMES = [f"{size}: {variant}" for size, variant in sharded.RUNS]
NAMES += [f"{size}: {function.__name__}" for sizes, function in sharded.CHECKS for size in sizes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one process gives for each variant, and a run that it was stopped in."""
    folder = tmp_path_factory.mktemp("sharded")
    for variant in dict.fromkeys(variant for _, variant in sharded.RUNS):
        result = Trainer(sharded.settings(variant), sharded.data(variant)).fit()
        own = folder / "one" / variant
        for name in ("teacher", "student"):
            save_model(own / f"{name}.safetensors", getattr(result, name))
        kept = {"history": result.history, "metrics": result.metrics, "baselines": result.baselines}
        (own / "result.json").write_text(json.dumps(kept))
    out = str(folder / "an epoch of one")
    Trainer(sharded.settings("negatives from samples", run__out=out, train__epochs=1), sharded.data()).fit()
    return folder


@pytest.fixture(scope="module")
def found(folder) -> dict[int, dict[str, str]]:
    """What went wrong on each process."""
    command, environment = [sys.executable, str(HERE / "sharded.py")], os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.Popen([*command, "4", str(folder)], env=environment, start_new_session=True)
    try:
        started.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    return {r: json.loads(path.read_text()) for r in range(4) if (path := folder / f"{r}.json").exists()}


@pytest.mark.parametrize("name", NAMES)
def test_world(found, name):
    assert found.keys() == {0, 1, 2, 3}, "a process died"
    texts = {rank: text for rank, all_ in found.items() if (text := all_.get(name))}
    assert not texts, "\n".join(f"rank {rank}: {text}" for rank, text in texts.items())


@pytest.mark.parametrize(
    ("name", "variant"), [("stopped for one", "bpr, gradual"), ("an epoch of two", "negatives from samples")]
)
def test_a_checkpoint_of_several_processes_goes_on_in_one(found, folder, name, variant):
    result = Trainer.resume(folder / name, config=sharded.settings(variant)).fit()
    one = json.loads((folder / "one" / variant / "result.json").read_text())
    sharded.same(result.history, result.metrics, one)
    for model in ("teacher", "student"):
        whole = load_model(folder / "one" / variant / f"{model}.safetensors")
        sharded.near(getattr(result, model), whole, [range(len(p)) for p in whole.parameters()])
    left = {path.name.partition("-")[0] for path in (folder / name / "checkpoint").iterdir()}
    assert left == {"state.json", "tensors"}


def test_a_process_is_lost_in_a_step(found, folder):
    """The others name it, within the time-out."""
    told = {r: json.loads(path.read_text()) for r in range(4) if (path := folder / f"{r} lost.json").exists()}
    assert told == {0: "", 2: "", 3: ""}


def test_a_killed_process_under_torchrun(found, folder, tmp_path):
    """`bidistill train` as for one process. Killed in the middle of an epoch, it ends as if nothing had happened."""
    sharded.data().save(tmp_path / "split.npz")
    kill, calm = tmp_path / "run", folder / "calm"
    options = sharded.BASE | {"eval.ks": "3,5", "run.checkpoint_steps": 3, "run.progress": "false", "run.out": kill}
    options |= {"data.train_path": tmp_path / "split.npz"}
    flags = [f"--{name.replace('.', '-').replace('_', '-')}={value}" for name, value in options.items()]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(HERE / "sharded.py"), "command", "train", *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder:") == 1 and done.stdout.count("53 users, 71 items") == 2  # one process speaks
    for name in ("teacher", "student"):
        pairs = zip(*(load_model(run / f"{name}.safetensors").parameters() for run in (kill, calm)), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)
    records = [read_record(run / "metrics.json", Finished) for run in (kill, calm)]
    assert records[0].metrics == records[1].metrics and records[0].pretrained == records[1].pretrained
    assert records[0].files == records[1].files
    rows = [list(csv.DictReader((run / "metrics.csv").open())) for run in (kill, calm)]
    assert timeless(rows[0]) == timeless(rows[1])
    assert (kill / "report.html").is_file() and not list(kill.glob("**/.*unfinished*"))
