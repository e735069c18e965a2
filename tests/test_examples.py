"""The examples run as a user runs them, and stay short."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "python" / "examples"
SAYS = {  # what the last line of each example tells
    "distil_two_models.py": r"NDCG@50 with distillation: teacher 0\.\d+, student 0\.\d+",
    "rank_and_topk.py": r"MRR 0\.\d+; 64 users x 100,000 items",
    "shards.py": r"1 processes sent \d+\.\d MB for 64 users; checksum of the draws \d+",
    "train_with_bidistill.py": r"report\.html: \d+ KB",
}


def test_the_program_of_the_readme_runs(tmp_path):
    text = (EXAMPLES.parent.parent / "README.md").read_text(encoding="utf-8")
    program = text.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == SAYS.keys()


@pytest.mark.parametrize("name", SAYS)
def test_example_runs(name, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(SAYS[name], done.stdout.splitlines()[-1])
    assert not list(tmp_path.iterdir()), "an example left files in the working folder"


def test_shards_under_torchrun():
    """The draws of two processes are those of one."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    last = []
    for start in (command, [sys.executable]):
        done = subprocess.run(
            [*start, str(EXAMPLES / "shards.py")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        last.append(done.stdout.splitlines()[-1])
    assert last[0].startswith("2 processes") and last[1].startswith("1 processes")
    assert last[0].split("checksum")[1] == last[1].split("checksum")[1]


@pytest.mark.parametrize("name", SAYS)
def test_example_is_short_and_says_what_it_is(name):
    lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) < 60
    assert lines[0].startswith('"""')
