"""Optimizers and schedules by name, from outside the package and of torch; clipping; weight decay; a resumed run goes on."""

import math

import pytest
import torch
from bidistill import MF, Config, Trainer, UserError, generate, register_optimizer, register_scheduler, split
from bidistill.config import ModelConfig
from bidistill.optimizers import KEPT, Schedule, clip, load_state, make_fused, make_optimizer, state_of, state_size
from bidistill.registry import OPTIMIZERS, SCHEDULERS
from bidistill.training.types import Terms
from bidistill.training.updates import EagerUpdate, FusedUpdate
from runs import StopAt, timeless
from test_growth import rows as growing

BASE = {
    "teacher.dim": 4,
    "student.dim": 2,
    "train.batch_size": 256,
    "train.pretrain_epochs": 2,
    "train.epochs": 4,
    "train.patience": 0,
    "eval.ks": (5,),
    "train.monitor": "ndcg@5",
    "run.progress": False,
    "distill.pool": 5,
}


@pytest.fixture(scope="module")
def parts():
    return split(generate(50, 60, 1000, dim=4, seed=1)[0], "leave_one", seed=1)


def settings(**overrides):
    return Config().with_overrides(BASE | {name.replace("__", "."): value for name, value in overrides.items()})


def both(**options):
    """Options of both models."""
    return {f"{name}__{key}": value for name in ("teacher", "student") for key, value in options.items()}


RUNS = {
    "outside": both(optimizer="sign_momentum", optimizer_args={"beta": 0.8}, lr_scheduler="cautious", lr=0.005),
    "AdamW, plateau": both(
        optimizer="AdamW", weight_decay=0.1, lr_scheduler="ReduceLROnPlateau", lr_scheduler_args={"patience": 0}
    ),
    "fused, cosine": both(optimizer="sparse_adam", weight_decay=1e-3, lr_scheduler="cosine"),
    "fused, steps": both(
        optimizer="adagrad", weight_decay=1e-3, lr_scheduler="MultiStepLR", lr_scheduler_args={"milestones": [1, 3]}
    ),
    "eager, decay": {
        **both(
            optimizer="sparse_adam", weight_decay=1e-3, lr_scheduler="ExponentialLR", lr_scheduler_args={"gamma": 0.7}
        ),
        "distill__negatives_from_samples": True,
    },
    "clipped": both(optimizer="sgd", optimizer_args={"momentum": 0.9, "nesterov": True}, clip_norm=0.05, lr=1.0),
    "cycles": both(
        optimizer="NAdam", lr_scheduler="OneCycleLR", lr_scheduler_args={"max_lr": 0.05, "total_steps": 10}, lr=0.01
    ),
    "Adafactor": both(optimizer="Adafactor", lr_scheduler="linear", lr_scheduler_args={"warmup": 1}),
    "Rprop": both(optimizer="Rprop"),
    "ASGD": both(optimizer="ASGD", optimizer_args={"t0": 3.0}, lr=1.0),
}


@pytest.fixture
def named(outside):
    outside("sign_momentum")
    outside("cautious")


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_goes_on_bit_for_bit(name, parts, tmp_path):
    """Stopped within an epoch and at its end; the other run is not disturbed."""
    whole = Trainer(settings(**RUNS[name]), parts).fit()
    trainer = Trainer(
        settings(**RUNS[name], run__out=str(tmp_path), run__checkpoint_steps=1), parts, callbacks=[StopAt(1, 2)]
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.save()
    again = Trainer.resume(tmp_path, callbacks=[StopAt(3, 1)])
    with pytest.raises(KeyboardInterrupt):
        again.fit()
    again = Trainer.resume(tmp_path)  # from the last checkpoint
    found = again.fit()
    assert found.metrics == whole.metrics
    for a, b in ((found.teacher, whole.teacher), (found.student, whole.student)):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert timeless(found.history) == timeless(whole.history)
    rates = [[row.get("student/lr") for row in run.history if row["phase"] == "joint"] for run in (found, whole)]
    assert rates[0] == rates[1] and len(rates[0]) == 5
    scheduled = "student__lr_scheduler" in RUNS[name]
    assert all((rate is not None) == scheduled for rate in rates[0])
    assert not any("student/lr" in row for row in whole.history if row["phase"] == "pretrain_teacher")


def test_a_schedule_begins_anew_with_each_phase(parts):
    rows = Trainer(settings(teacher__lr=0.02, teacher__lr_scheduler="cosine"), parts).fit().history
    rates = {
        phase: [row["teacher/lr"] for row in rows if row["phase"] == phase] for phase in ("pretrain_teacher", "joint")
    }
    # The row of epoch 0 has the rate that the first epoch begins with.
    assert rates["pretrain_teacher"] == pytest.approx([0.02, 0.02, 0.01])
    assert rates["joint"] == pytest.approx([0.02, *(0.01 * (1 + math.cos(math.pi * e / 4)) for e in range(4))])
    assert not any("student/lr" in row for row in rows)


@pytest.mark.usefixtures("named")
def test_a_schedule_that_watches_is_told_each_evaluation(parts):
    calls = []

    class Watching:
        def __init__(self, optimizer, epochs):
            assert epochs in (1, 4)

        def step(self, value):
            calls.append(value)

    register_scheduler("watching", Watching)
    config = settings(student__lr_scheduler="watching", train__eval_every=2, train__pretrain_epochs=0)
    rows = Trainer(config, parts).fit().history
    evaluated = [
        row["student/ndcg@5"] for row in rows if row["phase"] == "joint" and row["epoch"] and "student/ndcg@5" in row
    ]
    assert calls == evaluated and len(calls) == 2


def test_the_plateau_is_of_a_metric_of_which_more_is_better():
    rates = []
    for values in ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = Schedule(optimizer, "ReduceLROnPlateau", {"patience": 0, "factor": 0.5}, 9)
        for value in values:
            schedule.step(value)
        rates.append(schedule.lr)
    assert rates == [1.0, 0.25]


@pytest.mark.parametrize("sparse", [False, True])
def test_clip_is_that_of_torch(sparse):
    ids = torch.tensor([1, 1, 3])
    rows = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    for most in (0.5, 100.0):
        table, other, peers = torch.nn.Parameter(torch.zeros(5, 2)), torch.nn.Parameter(torch.zeros(2)), []
        grad = torch.sparse_coo_tensor(ids[None], rows, (5, 2), check_invariants=False)
        table.grad, other.grad = grad if sparse else grad.to_dense(), torch.tensor([12.0, 0.0])
        for each in (table, other):
            peers.append(torch.nn.Parameter(each.detach().clone()))
            peers[-1].grad = each.grad.to_dense().clone()
        clip([table, other, torch.nn.Parameter(torch.zeros(1))], most)
        torch.nn.utils.clip_grad_norm_(peers, most)
        for each, peer in zip((table, other), peers, strict=True):
            torch.testing.assert_close(each.grad.to_dense(), peer.grad)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adagrad", "sparse_adam"])
def test_weight_decay_is_for_the_rows_that_a_step_touches(name, sparse):
    """Those whose gradient is not zero."""
    if name == "sparse_adam" and not sparse:
        return
    values, ids = torch.arange(1.0, 11.0).view(5, 2), torch.tensor([1, 3, 4])
    table = torch.nn.Parameter(values.clone())
    grad = torch.sparse_coo_tensor(ids[None], torch.tensor([[1.0, 0], [0, -1], [0, 0]]), (5, 2), check_invariants=False)
    table.grad = grad if sparse else grad.to_dense()
    make_optimizer(name, [table], 0.1, 0.5, {}).step()
    moved = (table.detach() != values).any(1)
    assert moved.tolist() == [False, True, False, True, False]
    if name == "sgd":
        want = values - 0.1 * (grad.to_dense() + 0.5 * values) * torch.tensor([0.0, 1, 0, 1, 0])[:, None]
        torch.testing.assert_close(table.detach(), want)


class Reordered(MF):
    """Its parameters in another order than its tables."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self._modules["user_factors"] = self._modules.pop("user_factors")  # now the last


@pytest.mark.parametrize("model", [MF, Reordered])
@pytest.mark.parametrize("name", ["sgd", "adagrad", "sparse_adam"])
def test_either_update_goes_on_where_the_other_stopped(name, model):
    config = ModelConfig(optimizer=name, lr=0.1)
    terms = Terms("bce", "bce", 1.0, 1.0, 1.0)
    eager, again, fused = (
        kind(made, config, terms) if kind is EagerUpdate else kind(made, made.tables(), config, terms)
        for kind in (EagerUpdate, EagerUpdate, FusedUpdate)
        for made in [model(5, 6, 3, seed=1, sparse=True)]
    )
    for parameter in eager.model.parameters():  # a step that tells the tables apart by their numbers of rows
        parameter.grad = torch.ones_like(parameter).to_sparse(1) * len(parameter)
    eager.optimizer.step()
    fused.load_state(state := eager.state())
    again.load_state(fused.state())
    found = {key: value for key, value in again.state().items() if isinstance(value, torch.Tensor) and value.dim()}
    wanted = {key: value for key, value in state.items() if isinstance(value, torch.Tensor) and value.dim()}
    assert found.keys() == wanted.keys() and len(found) == 3 * len(fused.optimizer.names)  # type: ignore[attr-defined]
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    named = fused.optimizer.state[fused.optimizer.item_table]  # type: ignore[attr-defined]
    assert all(each.shape == (6, 3) and (each == each[0, 0]).all() and each[0, 0] > 0 for each in named.values())


def test_what_an_optimizer_keeps_is_what_the_plan_counts():
    for name, tensors in KEPT.items():
        assert state_size(name, 0.01, 0.0, {}) == tensors
        assert state_size(name, 0.01, 0.0, {"eps": 1e-7} if name != "sgd" else {"dampening": 0.0}) == tensors
    assert state_size("AdamW", 0.01, 0.0, {"amsgrad": True}) == 3
    assert state_size("sgd", 0.01, 0.0, {"momentum": 0.9}) == 1
    assert state_size("SparseAdam", 0.01, 0.0, {}) == 2


@pytest.mark.usefixtures("outside")
def test_what_is_refused():
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            self.state[self.param_groups[0]["params"][0]]["words"] = "text"

    register_optimizer("odd", Odd)
    register_optimizer("nothing", lambda params, lr: None)  # type: ignore[return-value]
    for name, args, words in (
        ("odd", {}, "the optimizer 'odd' keeps words, which is a str"),
        ("nothing", {}, "'nothing' must return a torch.optim.Optimizer, found NoneType"),
        ("AdamW", {"betas": [2.0, 0.5]}, "the optimizer 'AdamW' cannot be made with lr 0.1, betas .*: Invalid beta"),
    ):
        with pytest.raises(UserError, match=words):
            state_size(name, 0.1, 0.0, args)
    with pytest.raises(UserError, match="the optimizer 'adagrad' cannot be made with these settings: eps: expected"):
        make_fused("adagrad", (torch.zeros(2, 2), torch.zeros(2, 2), None), 0.1, 0.0, {"eps": -1.0})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(UserError, match="the schedule 'PolynomialLR' cannot be made with .*x 1"):
        Schedule(optimizer, "PolynomialLR", {"total_iters": 2, "power": 1, "x": 1}, 9)
    for taken, register in (
        ("AdamW", register_optimizer),
        ("StepLR", register_scheduler),
        ("adam", register_optimizer),
    ):
        with pytest.raises(UserError, match=f"there is a .* '{taken}'"):
            register(taken, print)


def test_names_of_torch():
    assert list(OPTIMIZERS)[:4] == ["adam", "adagrad", "sgd", "sparse_adam"]
    assert "AdamW" in OPTIMIZERS and OPTIMIZERS["AdamW"] is torch.optim.AdamW
    for name in ("Optimizer", "lr_scheduler", "adamw", "_multi_tensor"):
        assert name not in OPTIMIZERS
    assert SCHEDULERS["StepLR"] is torch.optim.lr_scheduler.StepLR and "LRScheduler" not in SCHEDULERS


def test_settings_that_change_are_kept():
    """Of the groups, such as what an optimizer or a callback has made of lr; settings as they were made are not."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=0.5)
    assert state_of(optimizer) == {"group.0.lr": 0.5}
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.param_groups[0]["k"] = 3
    saved = state_of(optimizer)
    assert saved == {"group.0.lr": 0.25, "group.0.k": 3}
    other = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=0.5)
    load_state(other, saved)
    assert (other.param_groups[0]["lr"], other.param_groups[0]["k"]) == (0.25, 3)


@pytest.mark.parametrize("optimizer", ["AdamW", "Adafactor"])
def test_a_run_grows_with_any_optimizer(optimizer, tmp_path):
    parts, more = (split(each) for each in growing())
    config = settings(**both(optimizer=optimizer, lr_scheduler="cosine"), run__out=str(tmp_path))
    trainer = Trainer(config, parts, callbacks=[StopAt(1, 2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.save()
    grown = Trainer.resume(tmp_path, split=more, grow=True)
    assert grown.engine.learners["teacher"].schedule.lr == pytest.approx(0.5 * 0.007 * (1 + math.cos(math.pi / 4)))
    grown.fit()
    assert len(grown.engine.learners["teacher"].model.user_factors.weight) == more.n_users > parts.n_users  # type: ignore[attr-defined]
