"""Every setting of a run: nested dataclasses, read from and written to TOML; the help text is in each field."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from bdkernels import ranges
from bdkernels.checks import MAX_ITEMS
from bidistill.data_options import DataConfig
from bidistill.errors import UserError
from bidistill.eval_options import EvalConfig
from bidistill.files.access import replacing
from bidistill.losses import FULL_SOFTMAX
from bidistill.losses.rules import check_losses
from bidistill.metrics import names_of
from bidistill.optimizers import check_optimizer, check_scheduler, wants_sparse
from bidistill.options import Option, option, options_of
from bidistill.presets import PRESETS
from bidistill.registry import METHODS, METRICS, MODELS, OPTIMIZERS, SCHEDULERS
from bidistill.train_options import TrainConfig

# What the operators take, so that no value is refused after hours of training.
TAU: dict[str, Any] = {"least": ranges.TAU.low, "most": ranges.TAU.high}
LAMBDA: dict[str, Any] = {"least": ranges.LAMBDA.low, "most": ranges.LAMBDA.high, "or_zero": True}
DECAY: dict[str, Any] = {"least": ranges.WEIGHT_DECAY.low, "most": ranges.WEIGHT_DECAY.high, "or_zero": True}
MOST_DRAWS = int(ranges.DRAWS.high)
MOST_LR = 1e37  # Adam divides it by 0.1 in its first step, and the quotient is a float32 too
MOST_THREADS = 1024  # see `start.set_threads`
MOST_SECONDS = 365 * 86_400
MOST_EPS = sys.float_info.max / MAX_ITEMS  # so that alpha is finite


@dataclass(frozen=True)
class ModelConfig:
    kind: str = option(
        "mf", "kind of model: mf is matrix factorisation with an item bias; others are registered", choices=MODELS
    )
    args: dict[str, Any] = option({}, "settings of that kind of model")  # noqa: RUF009
    dim: int = option(50, "length of a user's or an item's vector", least=1)
    lr: float = option(0.01, "learning rate", least=ranges.LR.low, most=MOST_LR)
    weight_decay: float = option(
        0.0,
        "L2 regularisation, added to the gradient; with sparse_adam, adagrad and sgd to that of the rows of a batch",
        **DECAY,
    )
    optimizer: str = option(
        "adam",
        "optimizer; sparse_adam, adagrad and sgd update only the rows of a batch, in one fused call: fast on large catalogs",
        choices=OPTIMIZERS,
    )
    optimizer_args: dict[str, Any] = option({}, "settings of that optimizer besides lr and weight_decay")  # noqa: RUF009
    lr_scheduler: str | None = option(
        None,
        "how the learning rate changes from epoch to epoch, anew in each phase; cosine, linear: down to 0 at the phase's last",
        choices=SCHEDULERS,
    )
    lr_scheduler_args: dict[str, Any] = option({}, "settings of that schedule")  # noqa: RUF009
    joint_lr: float | None = option(
        None, "learning rate of the joint phase; unset: lr", least=ranges.LR.low, most=MOST_LR
    )
    joint_lr_scheduler: str | None = option(
        None,
        "schedule of the joint phase; unset: lr_scheduler; constant: none, the rate stays as it is",
        choices=SCHEDULERS,
        words=("constant",),
    )
    joint_lr_scheduler_args: dict[str, Any] = option({}, "settings of that schedule")  # noqa: RUF009
    clip_norm: float = option(
        0.0, "largest norm of a step's gradient, which is scaled down to it; steps are not fused then; 0: any", least=0
    )

    def build_config(self, n_users: int, n_items: int) -> dict[str, Any]:
        """What `build_model` makes a model of these settings from, for data of these sizes."""
        sizes = {"n_users": n_users, "n_items": n_items, "dim": self.dim}
        return {"kind": self.kind, **sizes, "sparse": wants_sparse(self.optimizer), "args": self.args}

    def of_joint_phase(self) -> ModelConfig:
        """The settings with the learning rate and the schedule that the joint phase has."""
        lr = self.lr if self.joint_lr is None else self.joint_lr
        if self.joint_lr_scheduler is None:
            return replace(self, lr=lr)
        name = None if self.joint_lr_scheduler == "constant" else self.joint_lr_scheduler
        return replace(self, lr=lr, lr_scheduler=name, lr_scheduler_args=self.joint_lr_scheduler_args)


@dataclass(frozen=True)
class WeightConfig:
    kind: str = option(
        "tanh",
        "how the rank gap becomes a sampling weight",
        choices=("tanh", "exp", "linear", "uniform", "rank_only"),
    )
    alpha: float | None = option(None, "sharpness; unset: 252 for tanh, 2.5 for exp", above=0)
    eps: float | None = option(
        None, "sharpness for each rank instead of alpha (alpha = eps * items)", above=0, most=MOST_EPS
    )
    mu: float = option(10.0, "scale of rank_only, in ranks of the guide", above=0)


@dataclass(frozen=True)
class DistillConfig:
    method: str = option(
        "bidirectional",
        "distillation method; none: both models are trained without learning from each other, as in a control",
        choices=METHODS,
        words=("none",),
    )
    args: dict[str, Any] = option({}, "settings of a method's own")  # noqa: RUF009
    lambda_teacher: float = option(0.1, "weight of the teacher's distillation loss; 0: that direction is off", **LAMBDA)
    lambda_student: float = option(2.0, "weight of the student's distillation loss; 0: that direction is off", **LAMBDA)
    guide: str = option(
        "live",
        "what a learner follows: live: the other model as it is at the step; frozen: as the joint phase began, which is the best"
        " of its pretraining; ema: the exponential moving average of its parameters",
        choices=("live", "frozen", "ema"),
    )
    ema: float = option(
        0.999,
        "with guide ema: how much of the average each step keeps; the rest comes from the model",
        least=0,
        below=1,
    )
    loss: str = option(
        "bce",
        "distillation loss: bce: binary cross-entropy of each drawn item; listwise: KL divergence of the shares that the scores"
        " of a row's drawn items have, so it needs samples of 2 and more; full_softmax: cross entropy over all items",
        choices=(*ranges.DISTILL_LOSSES, FULL_SOFTMAX),
    )
    guide_scores: str = option(
        "logits",
        "what the guide's scores are: logits; shares: in proportion to chances, as of item_knn, so their logarithms are taken",
        choices=("logits", "shares"),
    )
    tau_learner: float = option(1.0, "temperature of the model that learns", **TAU)
    tau_guide: float = option(1.0, "temperature of the model that is followed", **TAU)
    side: str = option(
        "over", "distil items that the learner ranks higher (over) or lower than its guide", choices=("over", "under")
    )
    samples: int = option(
        1,
        "items for each training interaction and direction, at random from the user's pool; 0: the whole pool, as listwise losses"
        " need it",
        least=0,
        most=MOST_DRAWS,
    )
    resample_every: int = option(
        1, "n: draw each user's pool anew every n epochs; 0: draw at every step, which takes far longer", least=0
    )
    resample: str = option(
        "at_once",
        "at_once: all pools before the first of n epochs; gradual: a few at every step, so that no step waits for all",
        choices=("at_once", "gradual"),
    )
    pool: int = option(
        32, "draws in a user's pool, with resample_every > 0; 0 with pool_top or pool_uniform", least=0, most=MOST_DRAWS
    )
    pool_top: int = option(
        0, "the guide's best unseen items in a user's pool, besides the draws", least=0, most=MOST_DRAWS
    )
    pool_uniform: int = option(
        0,
        "unseen items in a user's pool that are drawn with equal chances, besides the draws",
        least=0,
        most=MOST_DRAWS,
    )
    subset: int | str = option(
        0,
        "m: estimate ranks from m random items, so that drawing costs no more for more items; 0: exact ranks; auto: exact"
        " while drawing takes at most auto_share of a step, measured when the run begins, else 10,000 items",
        words=("auto",),
        least=0,
    )
    auto_share: float = option(
        0.5,
        "with subset auto: the largest share of the joint phase's time that exact draws may take",
        above=0,
        below=1,
    )
    independent_directions: bool = option(
        False, "draw the items of the two directions from proposals of their own; that takes a second pass of counting"
    )
    negatives_from_samples: bool = option(False, "use the drawn items as the negatives of the joint phase too")
    to_student: WeightConfig = field(
        default_factory=lambda: WeightConfig(kind="tanh"),
        metadata={"help": "items on which the student follows the teacher"},
    )
    to_teacher: WeightConfig = field(
        default_factory=lambda: WeightConfig(kind="exp"),
        metadata={"help": "items on which the teacher follows the student"},
    )

    @property
    def pool_size(self) -> int:
        """Items in a user's pool."""
        return self.pool + self.pool_top + self.pool_uniform


@dataclass(frozen=True)
class RunConfig:
    out: str | None = option(None, "folder of the run; unset in Python: write nothing")
    seed: int = option(0, "seed of initial values, shuffling, negatives and samples", least=0)
    device: str = option("cpu", "torch device, such as cpu or cuda")
    threads: int = option(0, "CPU threads; 0: torch's default", least=0, most=MOST_THREADS)
    checkpoint_every: int = option(1, "epochs between checkpoints; Ctrl-C saves one too", least=1)
    checkpoint_steps: int = option(0, "n: save one after every n steps of an epoch too; 0: do not", least=0)
    timeout: int = option(
        600,
        "seconds after which processes that train together give up on one that does not answer",
        least=1,
        most=MOST_SECONDS,
    )
    progress: bool = option(True, "show progress bars and a line for each evaluation")
    tensorboard: bool = option(False, "also log for TensorBoard, if it is installed")


@dataclass(frozen=True)
class Config:
    """All settings. A wrong value raises UserError naming `section.option`, whichever way the Config was made."""

    data: DataConfig = field(default_factory=DataConfig, metadata={"help": "what to train on"})
    teacher: ModelConfig = field(
        default_factory=lambda: ModelConfig(dim=50, lr=0.007), metadata={"help": "the large model"}
    )
    student: ModelConfig = field(
        default_factory=lambda: ModelConfig(dim=5, lr=0.015), metadata={"help": "the small model"}
    )
    train: TrainConfig = field(default_factory=TrainConfig, metadata={"help": "how both are trained"})
    distill: DistillConfig = field(default_factory=DistillConfig, metadata={"help": "what they learn from each other"})
    eval: EvalConfig = field(default_factory=EvalConfig, metadata={"help": "how they are evaluated"})
    run: RunConfig = field(default_factory=RunConfig, metadata={"help": "where and how it runs"})

    def __post_init__(self) -> None:
        for each in options():
            section = _get(self, each.section)
            object.__setattr__(section, each.field, each.check(getattr(section, each.field)))
        self._check_together()

    def _check_together(self) -> None:
        """Rules that involve several options."""
        if self.train.monitor not in (metrics := names_of(self.eval.ks)):
            own = "" if self.train.monitor.partition("@")[0] in METRICS else "; register a metric of your own first"
            raise UserError(
                f"train.monitor is {self.train.monitor!r}, but eval.ks gives only: {', '.join(metrics)}{own}"
            )
        for name in ("to_student", "to_teacher"):
            weight: WeightConfig = getattr(self.distill, name)
            if weight.alpha is not None and weight.eps is not None:
                raise UserError(f"distill.{name}.alpha and distill.{name}.eps are both set: keep one of them")
            for option_name in ("alpha", "eps"):
                if getattr(weight, option_name) is not None and weight.kind not in ("tanh", "exp"):
                    full = f"distill.{name}.{option_name}"
                    raise UserError(f"{full} is set, but the weight {weight.kind!r} has no sharpness: unset it")
        if self.distill.method != "none" and not (self.distill.lambda_teacher or self.distill.lambda_student):
            raise UserError("distill.lambda_teacher and lambda_student are both 0: set one, or distill.method to none")
        if self.distill.negatives_from_samples and not (self.distill.lambda_teacher and self.distill.lambda_student):
            raise UserError("distill.negatives_from_samples needs distill.lambda_teacher and lambda_student above 0")
        if self.distill.method != "none":
            self._check_pool()
        if self.distill.ema != DistillConfig.ema and self.distill.guide != "ema":
            raise UserError(
                f"distill.ema is set, but distill.guide is {self.distill.guide!r}: set that to ema, or unset this"
            )
        if self.train.joint == "student" and self.distill.method != "none" and self.distill.lambda_teacher:
            raise UserError(
                "train.joint student lets the teacher stay as it is, but distill.lambda_teacher is"
                f" {self.distill.lambda_teacher:g}: set distill.lambda_teacher to 0, or train.joint to both"
            )
        self.train.check_negatives()
        if self.train.shares_negatives and self.distill.negatives_from_samples:
            raise UserError(
                f"distill.negatives_from_samples is set, but train.negative_source is {self.train.negative_source}: unset one"
            )
        check_losses(self)
        if self.distill.method != "none":
            METHODS.settings(self.distill.method, self.distill.args, "distill.args")
        for name in ("teacher", "student"):
            model = self.model(name)
            MODELS.settings(model.kind, model.args, f"{name}.args")
            slope = getattr(self.distill, f"lambda_{name}") / self.distill.tau_learner
            if self.distill.method != "none" and slope not in ranges.SLOPE:
                raise UserError(
                    f"distill.lambda_{name} / distill.tau_learner is {slope:g}, a factor of the gradient that must be at most"
                    f" {ranges.SLOPE.high!r}: lower distill.lambda_{name} or raise distill.tau_learner"
                )
            check_optimizer(name, model.optimizer, model.weight_decay, model.optimizer_args)
            check_scheduler(f"{name}.lr_scheduler", model.lr_scheduler, model.lr_scheduler_args)
            joint = None if model.joint_lr_scheduler == "constant" else model.joint_lr_scheduler
            check_scheduler(f"{name}.joint_lr_scheduler", joint, model.joint_lr_scheduler_args)

    def _check_pool(self) -> None:
        """Rules of the pool of draws."""
        distill = self.distill
        if not 1 <= distill.pool_size <= MOST_DRAWS:
            raise UserError(
                f"distill.pool, pool_top and pool_uniform are {distill.pool_size} together: make that at least 1 and at most"
                f" {MOST_DRAWS}"
            )
        if distill.resample_every == 0:
            for name in ("pool_top", "pool_uniform"):
                if getattr(distill, name):
                    raise UserError(
                        f"distill.{name} is set, but there is no pool with distill.resample_every 0: raise that, or unset this"
                    )

    def check_catalog(self, n_items: int) -> None:
        """Raise UserError where an option asks for more items than the catalog has."""
        sizes = {"eval.ks": max(self.eval.ks), "train.negatives": self.train.drawn_negatives}
        # A pool is drawn with replacement, so it may be larger; but for the guide's best.
        sizes |= {"distill.samples": self.distill.samples, "distill.pool_top": self.distill.pool_top}
        for name, size in sizes.items():
            if size > n_items:
                raise UserError(f"{name} asks for {size} items, but the catalog has {n_items}: choose a smaller value")

    @classmethod
    def preset(cls, name: str = "default") -> Config:
        """One of PRESETS: "default", "paper" (the published settings), "neighbours" (a student that follows `item_knn`, for
        catalogs of up to some 100,000 items) or "large" (many users and items)."""
        if name not in PRESETS:
            raise UserError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}")
        return cls().with_overrides(PRESETS[name])

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], preset: str = "default") -> Config:
        """Read a TOML file; options that it leaves out come from the preset."""
        base = cls.preset(preset)
        try:
            values = tomlkit.parse(Path(path).read_text(encoding="utf-8")).unwrap()
        except (OSError, ValueError, TOMLKitError) as error:
            raise UserError(f"cannot read the settings {os.fspath(path)}: {error}") from error
        try:
            return base.with_overrides(dict(flattened(values)))
        except UserError as error:
            raise UserError(f"{os.fspath(path)}: {error}") from error

    def to_toml(self, path: str | os.PathLike[str]) -> None:
        """Write every option with its help text; an option that is unset stands as a comment."""
        document = tomlkit.document()
        document.add(tomlkit.comment("Settings of a bidistill run. A line that starts with # is not read."))
        tables: dict[str, tomlkit.items.Table] = {}
        for each in options():
            if each.section not in tables:
                parent, _, name = each.section.rpartition(".")
                tables[each.section] = table = tomlkit.table()
                table.comment(each.section_help)
                (tables[parent] if parent else document).add(tomlkit.nl()).add(name, table)
            table, value = tables[each.section], self[each.name]
            table.add(
                tomlkit.comment(each.help + (f" ({' | '.join([*each.choices, *each.words])})" if each.choices else ""))
            )
            if value is None:
                table.add(tomlkit.comment(f"{each.field} ="))
            else:
                table.add(each.field, _plain(value))
        with replacing(path) as temporary:
            temporary.write_text(tomlkit.dumps(document), encoding="utf-8")

    def with_overrides(self, values: Mapping[str, Any]) -> Config:
        """A copy with {"section.option": value} changed."""
        names = {each.name: each for each in options()}
        tree: dict[str, Any] = {}
        tables: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            table, _, key = name.rpartition(".")
            if name not in names and table in names and names[table].type is dict:  # an entry of a table
                tables[table] = value = {**tables.get(table, _get(self, table)), key: value}
                name = table
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
                raise UserError(f"{name} is not an option: did you mean {close}?")
            *path, last = name.split(".")
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[last] = value
        changed: Config = _replace(self, tree)
        return changed

    def checked(self, name: str, value: Any) -> Any:
        """A value in the type of "section.option". Raises UserError where the option may not have it."""
        return next(each for each in options() if each.name == name).check(value)

    def model(self, name: str) -> ModelConfig:
        """The settings of the "teacher" or of the "student"."""
        return {"teacher": self.teacher, "student": self.student}[name]

    def __getitem__(self, name: str) -> object:
        """The value of "section.option"."""
        return _get(self, name)

    def differences(self, other: Config) -> list[str]:
        """Names of the options whose values differ."""
        return [each.name for each in options() if self[each.name] != other[each.name]]

    def values(self) -> dict[str, Any]:
        """{"section.option": value} for every option; `Config().with_overrides` takes it back, also after JSON."""
        return {each.name: self[each.name] for each in options()}

    def hash(self) -> str:
        """16 hex digits that stand for all values."""
        return hashlib.sha256(json.dumps(self.values(), sort_keys=True).encode()).hexdigest()[:16]


def options() -> tuple[Option, ...]:
    """Every option of a Config, in the order of the sections."""
    return options_of(Config)


def _get(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _replace(section: Any, values: Mapping[str, Any]) -> Any:
    changes = {
        name: _replace(getattr(section, name), value) if is_dataclass(getattr(section, name)) else value
        for name, value in values.items()
    }
    return replace(section, **changes)


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("section.option", value) of nested tables, such as a TOML file has; an option that is a table stays whole."""
    tables = {each.name for each in options() if each.type is dict}
    for name, value in values.items():
        if isinstance(value, dict) and prefix + name not in tables:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _plain(value: Any) -> Any:
    """A value as a TOML file has it: a table stands in one line."""
    if isinstance(value, dict):
        table = tomlkit.inline_table()
        table.update(value)
        return table
    return list(value) if isinstance(value, tuple) else value
