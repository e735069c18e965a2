"""What a distillation method is: on which items one model follows the other, and with what loss.

A method is a subclass of `Method`, registered by name, so that `distill.method` may choose it. As a dataclass, its fields are its
settings, which the table [distill.args] sets:

    @dataclass
    class Mine(Method):
        depth: int = 100

        def draw(self, teacher, student, asked): ...

    register_method("mine", Mine)

`Distiller` applies a method to two models in any training loop; `Trainer` is one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from bdkernels import Draws, Scorer, Seen, distill_loss
from bdkernels.ranges import LISTWISE
from bidistill.config import DistillConfig
from bidistill.distributed.partition import Partition
from bidistill.errors import UserError
from bidistill.models import Recommender
from bidistill.models.scoring import scorer_of
from bidistill.registry import METHODS

GUIDES = {"student": "teacher", "teacher": "student"}  # whom each learner follows
LEARNERS = tuple(GUIDES)
LOSS = ("loss", "tau_learner", "tau_guide")  # those of methods without a loss of their own
COMMON = (  # the options of [distill] that go for every method
    "method",
    "args",
    "lambda_teacher",
    "lambda_student",
    "guide",
    "guide_scores",
    "ema",
    "samples",
    "resample_every",
    "resample",
    "pool",
    "negatives_from_samples",
)


class Request(NamedTuple):
    """What a method is asked for: items on which models follow their guides.

    Attributes:
        users: [B] int64, as the rows of `seen` are numbered; repeats allowed.
        queries: what the models take for these rows: `users`, unless the loop's models take something else.
        seen: CSR rows of these users, whose items are not to be drawn.
        k: how many items are drawn for each row and learner.
        learners: "student" or "teacher" or both: those that follow their guide.
        seed, step: draws of another step are other draws; with a pool, `step` counts the epochs before it is drawn anew.
        occurrence: [B] int64, how many rows before this one have the same user, so that each row gets draws of its own; None
            where no user is repeated.
    """

    users: Tensor
    queries: Any
    seen: Seen
    k: int
    learners: tuple[str, ...]
    seed: int
    step: int
    occurrence: Tensor | None

    def scorer(self, model: Recommender) -> Scorer:
        """What `bdkernels.topk`, `rank` and `sample` take of a model for these rows, be its score a dot product or not."""
        return scorer_of(model, self.queries)


class Column(NamedTuple):
    """A column of the log: a key of the history's rows, its width, how a number is written, and the heading."""

    key: str
    width: int
    show: Callable[[float], str]
    title: str


class Method:
    """A distillation method. Only `draw` has to be written.

    A method that draws at random seeds its generator by (asked.seed, asked.step) alone: then a resumed run goes on bit for bit.
    It is made more than once, to check settings and to plan: what takes time or memory belongs in `prepare`.

    Attributes:
        options: names of options of [distill] that the method understands besides those of every method, for `from_config`.
        divisible: whether the method works where users and items lie on several processes: it then draws by the operators of
            the `partition` that `prepare` gets, and its tensors have a row for each user or item that is here.
        learners: who may learn by the method.
    """

    options: ClassVar[tuple[str, ...]] = ()
    divisible: ClassVar[bool] = False
    learners: ClassVar[tuple[str, ...]] = LEARNERS

    @property
    def list_size(self) -> int | None:
        """How many items a row gets, where that is for the method's own settings to say: it is then asked for so many, and each
        row of a batch gets all of them in their order, so that the loss may go by the places. distill.pool and samples are not
        options of such a method. None: these say it.
        """
        return None

    @classmethod
    def from_config(cls, config: DistillConfig) -> Method:
        """The method that the settings describe: by default `cls(**config.args)`."""
        return cls(**config.args)

    def prepare(self, seen: Seen, popularity: Tensor, partition: Partition, seed: int) -> None:
        """Called once, before anything else.

        Args:
            seen: CSR rows of all users that are here.
            popularity: [n_items] int64, training interactions of each item.
            partition: how many users and items there are, and the operators over all of them.
            seed: of all draws.
        """

    def refresh(self, teacher: Recommender, student: Recommender, step: int) -> None:
        """Called before each step of distillation, from step 0: the place to change the method's own state."""

    def draw(self, teacher: Recommender, student: Recommender, asked: Request) -> dict[str, Draws]:
        """Items for each of `asked.learners`: ids [B, k] int64, and mask [B, k] bool, False where there is nothing to learn."""
        raise NotImplementedError(f"{type(self).__name__} has no method draw")

    def loss(self, learner: str, scores: Tensor, guide_scores: Tensor, draws: Draws) -> Tensor:
        """What the learner minimises, a scalar: unless overridden, `bdkernels.distill_loss` of the `Distiller`'s kind and
        temperatures, which a fused step can do. Any other loss takes the eager step: the same draws, but slower.

        Args:
            learner: "student" or "teacher".
            scores: [B, k], the learner's, which the gradient goes to.
            guide_scores: [B, k], a constant.
            draws: the ids and the mask.
        """
        return distill_loss(scores, guide_scores, mask=draws.mask)

    def numbers(self, teacher: Recommender, student: Recommender, step: int) -> Mapping[str, float]:
        """What the row of an epoch in the history has of this method. step: see `Request`."""
        return {}

    def columns(self) -> tuple[Column, ...]:
        """Which of these numbers the log shows."""
        return ()

    def note(self) -> str:
        """Words for the log's title of the joint phase, such as how exact the draws are."""
        return ""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that the method has learned or drawn, which a checkpoint keeps."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave, on the device of `seen`."""

    def row_kinds(self) -> dict[str, str]:
        """How each tensor of `state_dict` grows with the data: it has a row a user ("users"), a row an item ("items"), or
        stays as it is ("")."""
        return {}

    @property
    def own_loss(self) -> bool:
        """Whether `loss` is overridden."""
        return type(self).loss is not Method.loss


def register_method(name: str, factory: Callable[..., Method], settings: type | None = None) -> None:
    """Let settings choose a method by name.

    Args:
        factory: a subclass of `Method`, or a function that gives one for its settings.
        settings: a dataclass of the settings; by default the method itself, if it is a dataclass, else they are not checked.

    Raises:
        UserError: the name stands for another method already.
    """
    METHODS.register(name, factory, settings)


def list_sizes(config: DistillConfig) -> tuple[int, int]:
    """How many items the settings ask of a method for each direction: in a user's pool, and for each training interaction."""
    method = make_method(config)
    if method is None:
        return 0, 0
    size = method.list_size
    if config.samples == 0 and not size and not config.resample_every:
        raise UserError(
            "distill.samples 0 takes a user's whole pool, but there is none with distill.resample_every 0: raise either"
        )
    return size or config.pool_size, size or config.samples or config.pool_size


def make_method(config: DistillConfig) -> Method | None:
    """The method that the settings choose; None for "none".

    Raises:
        UserError: they have an option that the method does not understand, or values that it refuses.
    """
    if config.method == "none":
        return None
    factory, settings = METHODS.entry(config.method).value, METHODS.settings(config.method, config.args, "distill.args")
    own = {each.name: getattr(settings, each.name) for each in fields(settings)} if is_dataclass(settings) else settings
    config = replace(config, args=own)
    try:
        method = factory.from_config(config) if hasattr(factory, "from_config") else factory(**own)
    except TypeError as error:
        raise UserError(f"distill.method {config.method!r} cannot be made of distill.args {own} ({error})") from error
    if not isinstance(method, Method):
        raise UserError(f"distill.method {config.method!r} gives {type(method).__name__}, not a bidistill.Method")
    for name in LEARNERS:
        if name not in method.learners and getattr(config, f"lambda_{name}"):
            raise UserError(
                f"by distill.method {config.method!r} only the {' and '.join(method.learners)} learns, but distill.lambda_{name}"
                f" is {getattr(config, f'lambda_{name}'):g}: set distill.lambda_{name} to 0, or choose another distill.method"
            )
    default = DistillConfig()
    known = {*COMMON, *method.options, *(() if method.own_loss else LOSS)}
    known -= {"pool", "samples"} if method.list_size else set()
    for name in (each.name for each in fields(config)):
        if name not in known and getattr(config, name) != getattr(default, name):
            raise UserError(
                f"distill.{name} is set, but the method {config.method!r} does not know it: leave it out, or choose another"
                " distill.method (settings of a method's own are in [distill.args])"
            )
    listed = method.list_size or config.samples or config.pool_size
    if config.loss in LISTWISE and listed < 2 and not method.own_loss:
        raise UserError(
            f"distill.loss is {config.loss}, but a list of one item is the same for every model: set distill.samples to 2 or"
            " more, or distill.loss to bce"
        )
    return method
