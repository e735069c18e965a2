"""Who a process is, what torchrun's restarts may do to a run's folder, and how restarted processes meet."""

import atexit
import os
import signal
import threading

import pytest
import sharded
import torch
import torch.distributed as dist
from bidistill import Trainer, UserError
from bidistill.distributed.partition import Partition
from bidistill.distributed.processes import Processes, launch, using
from bidistill.distributed.rendezvous import common_name, join
from runs import timeless


class Member(Processes):
    """A process of several, that asks nobody."""

    def __init__(self, rank, size):
        super().__init__()
        self.rank, self.size = rank, size


@pytest.fixture
def launched(monkeypatch):
    """As torchrun starts a process, and again."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    return lambda count, name="job": (
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count)),
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", name),
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 6, 7, 8, 53])
def test_ranges_are_the_chunks_of_torch(n, size):
    rows = [list(Member(rank, size).range(n)) for rank in range(size)]
    chunks = [chunk.tolist() for chunk in torch.arange(n).chunk(size)] if n else []
    assert rows == chunks + [[]] * (size - len(chunks))


def test_turns_are_as_many_on_every_process():
    """Each of the users from 3 to 17 once, by the process that has them."""
    parts = [Partition.whole(20, 5) for _ in range(3)]
    for rank, part in enumerate(parts):
        part.processes = Member(rank, 3)
        part.users = part.processes.range(20)
    turns = [part.turns(3, 18, 3) for part in parts]
    assert [len(each) for each in turns] == [3, 3, 3]
    assert [user for each in turns for turn in each for user in turn] == list(range(3, 18))
    assert all(user in part.users for part, each in zip(parts, turns, strict=True) for turn in each for user in turn)


def test_a_world_of_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    processes = Processes.find(sharded.settings("usual").run)
    assert (processes.rank, processes.size, processes.first) == (0, 1, True)
    assert (
        processes.agree("x", 3) == [3]
        and processes.texts("x", "a") == ["a"]
        and processes.sums("x", [1.5, 2.0]) == [1.5, 2.0]
    )
    with pytest.raises(ZeroDivisionError), processes.together("x"):
        _ = 1 / 0
    with using(Member(2, 3)):
        assert Processes.find(sharded.settings("usual").run).rank == 2


def test_launches_are_told_apart(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launch() == ""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # what torchrun calls every run without a rendezvous of its own
    assert str(os.getppid()) in launch()


@pytest.mark.usefixtures("heard_signals")
def test_a_restart_goes_on_with_its_own_run_alone(launched, tmp_path):
    config = sharded.settings("usual", run__out=str(tmp_path / "run"))
    stop = sharded.Steps(15, lambda: os.kill(os.getpid(), signal.SIGTERM))  # by which torchrun stops processes
    with pytest.raises(KeyboardInterrupt):
        Trainer(config, sharded.data(), callbacks=[stop]).fit()
    checkpoint = (tmp_path / "run" / "checkpoint" / "state.json").read_text()
    launched(1, "another job")
    with pytest.raises(UserError, match="holds a run already"):
        Trainer(config, sharded.data()).fit()
    launched(1)
    with pytest.raises(UserError, match=r"was trained with teacher\.lr"):
        Trainer(config.with_overrides({"teacher.lr": 0.5}), sharded.data()).fit()
    assert (tmp_path / "run" / "checkpoint" / "state.json").read_text() == checkpoint
    again = Trainer(config, sharded.data()).fit()
    whole = Trainer(sharded.settings("usual"), sharded.data()).fit()
    assert again.metrics == whole.metrics
    assert timeless(again.history) == timeless(whole.history)


def test_a_restart_before_the_first_checkpoint_starts_anew(launched, tmp_path):
    config = sharded.settings("usual", run__out=str(tmp_path / "run"), train__pretrain_epochs=0, train__epochs=1)
    trainer = Trainer(config, sharded.data())
    trainer.folder.make()
    trainer.folder.create(config, trainer.split, overwrite=False)
    with pytest.raises(UserError, match="holds a run already"):
        Trainer(config, sharded.data()).fit()
    launched(1)
    assert [row["epoch"] for row in Trainer(config, sharded.data()).fit().history] == [0, 0, 0, 1]


def test_a_common_name_is_new_though_the_store_is_old():
    store, names = dist.HashStore(), []
    for _ in range(3):  # what the processes before have left stays there
        found = {}

        def meet(rank, found=found):
            found[rank] = common_name(store, rank, 3, 20.0)

        threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(found) == 3 and len(set(found.values())) == 1
        names.append(found[0])
    assert len(set(names)) == 3
    with pytest.raises(RuntimeError, match="rank[s]? 1, 2 did not come within"):
        common_name(dist.HashStore(), 0, 3, 0.05)


def test_a_group_that_was_made_is_taken_down_at_the_end(monkeypatch):
    ends = []
    monkeypatch.setattr(atexit, "register", ends.append)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    join("cpu", 20)
    assert dist.is_initialized() and ends
    for end in [*ends, *ends]:  # also where someone has done it before
        end()
    assert not dist.is_initialized()
