"""bidistill plan: sizes, the sum of the arrays, what does not fit, and catalog "auto"."""

import json

import pytest
import torch
from bidistill import Config, Split, Trainer, UserError, generate, split
from bidistill.cli import main
from bidistill.data.sizes import made_up
from bidistill.logs import shown_in_terminal
from bidistill.plan import Costs, Sizes, make_plan, measure
from bidistill.plan import estimate as planning
from bidistill.plan.cluster import Network, draw_bytes, step_bytes, world_plan
from bidistill.training import memory as arrays
from bidistill.training import settings as automatic
from bidistill.training.memory import WHOLE, checkpoint, learner, memory, pool
from bidistill.training.timing import Cost, draw_share

COSTS = Costs(
    program=3.0,
    step={"pretrain_teacher": 0.01, "pretrain_student": 0.005, "joint": 0.02},
    draw=Cost(1e-4, 1e-9),
    rank={"teacher": Cost(0.0, 1e-9), "student": Cost(0.0, 1e-10)},
    read=1e-6,
    start=1e-6,
    tables=1e-9,
    save=1e-9,
    took=1.0,
)


def config(**overrides):
    return Config().with_overrides({name.replace("__", "."): value for name, value in overrides.items()})


def test_sizes_of_a_split():
    assert Sizes.of(1000, 500, 20_000, config()) == (1000, 500, 20_000, 18_000, 1000)
    assert Sizes.of(1000, 500, 20_000, config(data__split="ratio", eval__users=10)) == (1000, 500, 20_000, 16_000, 10)
    assert Sizes.of(1000, 500, 20_000, config(data__val=2.0, data__test=0.0)).train == 18_000
    for sizes, words in (
        ((1000, 500, 2000), "leave 0 to train for 1,000 users"),
        ((10, 5, 51), "--interactions 51 are more than"),
        ((0, 5, 51), "--users must be at least 1"),
    ):
        with pytest.raises(UserError, match=words):
            Sizes.of(*sizes, config())


@pytest.mark.parametrize("sizes", [(1000, 500, 20_000), (7, 1000, 700), (300, 40, 3000)])
def test_the_little_job_has_the_shape_of_the_large_one(sizes):
    large = Sizes.of(*sizes, config())
    for little in (large, large.at_most(50, 100, 1000)):
        parts = made_up(little)
        assert isinstance(parts, Split)  # which checks ids, and that every user trains
        assert (parts.n_users, parts.n_items, len(parts.train_users)) == (*little[:2], little.train)
        pairs = {*zip(parts.train_users.tolist(), parts.train_items.tolist(), strict=True)}
        assert len(pairs) == little.train
        assert not pairs & {*zip(parts.val_users.tolist(), parts.val_items.tolist(), strict=True)}


def test_arrays_are_counted_as_they_are():
    """Of a real Trainer after an epoch: parameters, best states, optimizer, pool, checkpoint."""
    parts = split(generate(60, 80, 1200, dim=4, seed=1)[0], "leave_one", seed=1)
    for optimizer in ("adam", "sparse_adam", "adagrad", "sgd"):
        settings = config(
            teacher__dim=8, student__dim=2, teacher__optimizer=optimizer, student__optimizer=optimizer,
            train__pretrain_epochs=1, train__epochs=1, distill__pool=3, eval__ks=(5, 50), run__progress=False,
        )  # fmt: skip
        trainer = Trainer(settings, parts)
        trainer.fit()
        sizes, found = Sizes.of_split(parts, settings), {}
        for name, each in trainer.engine.learners.items():
            held = sum(v.numel() * v.element_size() for v in each.state()[0].values() if v.numel() > 1)
            grads = sum(
                p.grad.numel() * 4 for p in each.model.parameters() if p.grad is not None and not p.grad.is_sparse
            )
            found[name] = held + grads
            assert found[name] == learner(settings[name], sizes, fused=True), (optimizer, name)
        assert trainer.engine.objective.distiller.pool.numel() * 4 == pool(settings, sizes)
        assert checkpoint(settings, sizes) <= sum(found.values()) + pool(settings, sizes)
        assert sum(part.bytes for part in memory(settings, sizes)) > sum(found.values())


def test_times_add_up(monkeypatch):
    settings = config(
        train__pretrain_epochs=2, train__epochs=4, train__batch_size=100, train__eval_every=2, eval__users=50,
        distill__resample_every=3, distill__resample="gradual", run__out="runs/x", run__checkpoint_steps=50,
    )  # fmt: skip
    sizes = Sizes.of(1000, 10_000, 20_000, settings)
    jobs = {job.name: job for job in make_plan(settings, sizes, COSTS).times}
    assert jobs["joint phase: step"][1:] == (0.02, 720)
    assert jobs["joint phase: resampling of all pools"].seconds == pytest.approx(1000 * 1.1e-4)
    assert jobs["joint phase: resampling of all pools"].times == pytest.approx(4 / 3)
    assert jobs["joint phase: evaluation"].seconds == pytest.approx(50 * 1.1e-5)
    assert jobs["joint phase: checkpoint"].times == 5 + 4 * 3
    at_once = make_plan(settings.with_overrides({"distill.resample": "at_once"}), sizes, COSTS)
    assert {job.name: job.times for job in at_once.times}["joint phase: resampling of all pools"] == 2
    every = make_plan(settings.with_overrides({"distill.resample_every": 0}), sizes, COSTS)
    assert {job.name: job.total for job in every.times}["joint phase: draws of a step"] == pytest.approx(720 * 0.011)
    some = make_plan(settings.with_overrides({"distill.subset": 1000}), sizes, COSTS)
    assert {job.name: job.seconds for job in some.times}["joint phase: resampling of all pools"] == pytest.approx(0.101)
    assert not make_plan(settings, sizes, COSTS).problems
    monkeypatch.setattr(arrays, "memory_there", lambda: 10**6)
    monkeypatch.setattr(planning, "disk_there", lambda folder: 10**6)
    problems = make_plan(settings, sizes, COSTS).problems
    assert [text.split(":")[0] for text in problems] == ["memory", "disk"]
    assert "goes to Python and torch" in problems[0]


def test_on_several_processes():
    """Tables and work divided, what all hold not; traffic per step and draw by hand, and none of it grows with the catalog."""
    settings = config(
        teacher__dim=64,
        student__dim=8,
        train__batch_size=1024,
        train__negatives=4,
        distill__pool=10,
        train__pretrain_epochs=1,
    )
    sizes = Sizes.of(100_000, 10**6, 10**7, settings)
    one = make_plan(settings, sizes, COSTS)
    four = world_plan(settings, sizes, COSTS, 4, Network(gbs=1.0, latency=1e-3))
    memory_of = [{part.name: part.bytes for part in plan.memory} for plan in (one, four)]
    for name, size in memory_of[0].items():
        assert memory_of[1][name] == (size if name in WHOLE else -(-size // 4))
    jobs = [{job.name: job for job in plan.times} for plan in (one, four)]
    for name in ("joint phase: step", "joint phase: resampling of all pools", "joint phase: evaluation"):
        assert jobs[1][name].seconds == pytest.approx(jobs[0][name].seconds / 4)
    rows, listed, factors = (
        1024 / 4,
        1 + 4 + 2,
        64 + 8 + 2,
    )  # each listed item: its id, a row of factors, their gradients
    sent = rows * listed * (8 + 4 * factors + 4 * factors) * 3 / 4
    assert step_bytes(settings, sizes, 4) == pytest.approx(sent)
    assert jobs[1]["joint phase: step, its traffic"].seconds == pytest.approx(sent / 1e9 + 8e-3)
    assert draw_bytes(settings, 4) == 3 * (4 * 72 + 28 * 120)
    larger = sizes._replace(items=10**9)
    assert step_bytes(settings, larger, 4) == pytest.approx(sent)
    assert four.seconds < one.seconds


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["plan", "--users", "300", "--items", "2e3", "--interactions", "6000", "--teacher-dim", "4"]
    assert main(arguments) == 0
    written = capsys.readouterr().out
    assert "300 users x 2,000 items, 5,400 of 6,000 interactions train; teacher 4" in written
    assert "run, if no phase ends early" in written
    assert "\nteacher and student train without the fused step: the optimizer 'adam' has no fused form" in written
    assert "joint phase: checkpoint" in written and not any(tmp_path.iterdir())  # planned for, without a folder made
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["peak_bytes"] == sum(found["memory"].values()) > 0
    assert found["total_s"] == pytest.approx(sum(job["total_s"] for job in found["times"])) and found["total_s"] > 0
    assert not list(tmp_path.iterdir())
    assert main([*arguments, "--world", "3"]) == 0
    assert "of each of 3 processes, derived" in capsys.readouterr().out
    assert main([*arguments, "--world", "0"]) == 2
    assert "--world must be at least 1" in capsys.readouterr().err
    assert main(["plan", "--users", "300"]) == 2
    assert "--users, --items and --interactions go together" in capsys.readouterr().err
    assert main(["plan"]) == 2
    assert "nothing to train on" in capsys.readouterr().err


def test_of_the_data_that_the_settings_name(tmp_path, capsys):
    parts = split(generate(60, 80, 1200, dim=4, seed=1)[0], "leave_one", seed=1)
    parts.save(tmp_path / "split.npz")
    assert main(["plan", "--data-train-path", str(tmp_path / "split.npz")]) == 0
    assert "60 users x 80 items, 1,080 of 1,200 interactions train" in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_catalog_auto(monkeypatch, capsys, tmp_path, share):
    """Exact while draws take at most the share; the number goes into the settings of the run."""
    parts = split(generate(60, 80, 1200, dim=4, seed=1)[0], "leave_one", seed=1)
    monkeypatch.setattr(automatic, "draw_share", lambda config, sizes: share)
    monkeypatch.setattr(automatic, "AUTO_ITEMS", 30)
    settings = config(distill__subset="auto", run__out=str(tmp_path), train__pretrain_epochs=1, train__epochs=1)
    with shown_in_terminal():
        trainer = Trainer(settings, parts)
        trainer.fit()
    saved = Config.from_toml(tmp_path / "config.toml").distill.subset
    assert saved == trainer.config.distill.subset == (0 if share < 0.5 else 30)
    written = capsys.readouterr().out
    assert f"exact draws would take {share:.0%} of the joint phase" in written
    last = trainer.history[-1]
    assert ("rank_error" in last) == (share > 0.5)
    if share > 0.5:
        assert 0 < last["rank_error"] < last["rank_error_bound"]
        assert "ranks off by" in written and written.splitlines()[-1].endswith(f"{last['rank_error']:.2%}")


def test_the_measured_share_grows_with_the_catalog():
    """The real measurement: of drawing 32 items a user over 200 items and over 200,000."""
    torch.manual_seed(0)
    sparse = {
        f"{name}__optimizer": "sparse_adam" for name in ("teacher", "student")
    }  # else a step grows with the catalog, too
    settings = config(teacher__dim=32, student__dim=4, train__batch_size=256, **sparse)
    shares = [draw_share(settings, Sizes.of(200, n, 4000, settings)) for n in (200, 200_000)]
    assert 0 < shares[0] < shares[1] < 1


def test_measured_costs_are_positive(tmp_path):
    settings = config(teacher__dim=8, student__dim=2, run__out=str(tmp_path / "runs" / "x"))
    costs = measure(settings, Sizes.of(300, 2000, 6000, settings))
    assert (
        all(value > 0 for value in (*costs.step.values(), costs.read, costs.tables, costs.save, costs.took))
        and costs.start >= 0
    )
    assert costs.draw.at(2000) > 0 and all(line.at(2000) > 0 for line in costs.rank.values())
    assert not list(tmp_path.iterdir())
