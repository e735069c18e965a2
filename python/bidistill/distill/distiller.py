"""A distillation method at work on two models, in any training loop."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bdkernels import Draws, Seen, distill_loss, occurrence
from bdkernels.ranges import DISTILL_LOSSES
from bidistill.config import DistillConfig
from bidistill.distill.lists import of_shares
from bidistill.distill.method import GUIDES, LEARNERS, Method, Request, make_method
from bidistill.distributed.partition import Partition, Share
from bidistill.errors import UserError
from bidistill.files.tensors import below
from bidistill.losses import FULL_SOFTMAX
from bidistill.models import Recommender
from bidistill.models.scoring import guide_scores, listed_scores
from bidistill.runs.growth import Growth
from bidistill.seeds import seed_of

CHUNK = (
    1024  # users drawn for in one call: enough that the kernels are at their best, few enough that no step waits long
)
KINDS = (torch.int64, torch.bool)  # of ids and mask


class Distiller:
    """Draws items by a method, keeps them in a pool, lets the guides score them, and computes the losses.

        distiller = Distiller(method, seen, n_items, samples=4, resample_every=100)
        losses = distiller(users, teacher, student)  # {"student": ..., "teacher": ...}
        (own_loss + 2.0 * losses["student"]).backward()

    Each row of a user who is repeated in a batch gets draws of its own.

    Args:
        method: which items, and what loss.
        seen: CSR rows of all users; seen items are never drawn.
        n_items: size of the catalog.
        learners: those that follow their guide.
        samples: items for each row and learner, picked at random in the user's pool; 0: the whole pool in its order.
        resample_every: n: draw each user's pool anew every n calls (in `Trainer`: every n epochs); 0: draw at every step.
        resample: "at_once": all pools before the first of n calls; "gradual": a few at every step.
        pool: items in a user's pool.
        guide: what a learner follows: the other model as it is at the step ("live"), a copy of it as it is when distillation
            begins ("frozen"), or the exponential moving average of its parameters ("ema"), which takes a pass over all of them
            at each step.
        ema: how much of that average each step keeps.
        kind, tau_learner, tau_guide: of `bdkernels.distill_loss`, unless the method has a loss of its own.
        scores: what the guides' scores are: "logits", or "shares", in proportion to chances: see `lists.of_shares`.
        seed: of all draws.
        popularity: [n_items] int64, training interactions of each item; by default those of `seen`.
        partition: what of the users and items is here; everything by default.

    Attributes:
        pool: [n_users, learners * pool] int32, -1 where there is no draw (yet); None before the first, and without pool.
        step: how many calls there were.
    """

    def __init__(
        self,
        method: Method,
        seen: Seen,
        n_items: int,
        *,
        learners: Sequence[str] = LEARNERS,
        samples: int = 1,
        resample_every: int = 0,
        resample: str = "at_once",
        pool: int = 32,
        guide: str = "live",
        ema: float = DistillConfig.ema,
        kind: str = "bce",
        tau_learner: float = 1.0,
        tau_guide: float = 1.0,
        scores: str = "logits",
        seed: int = 0,
        popularity: Tensor | None = None,
        partition: Partition | None = None,
    ) -> None:
        if not isinstance(method, Method):
            raise TypeError(f"method: expected a bidistill.Method, got {type(method).__name__}")
        if resample not in ("at_once", "gradual"):
            raise ValueError(f"resample: expected 'at_once' or 'gradual', got {resample!r}")
        if guide not in ("live", "frozen", "ema"):
            raise ValueError(f"guide: expected 'live', 'frozen' or 'ema', got {guide!r}")
        if not 0 <= ema < 1:
            raise ValueError(f"ema: expected a number of at least 0 and below 1, got {ema!r}")
        if not learners or not {*learners} <= {*LEARNERS}:
            raise ValueError(f"learners: expected some of {list(LEARNERS)}, got {list(learners)}")
        if not {*learners} <= {*method.learners}:
            raise ValueError(
                f"learners: expected {list(method.learners)} with {type(method).__name__}, got {list(learners)}"
            )
        for name, value, least in (("samples", samples, 0), ("resample_every", resample_every, 0), ("pool", pool, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
        if samples == 0 and not method.list_size and not resample_every:
            raise ValueError("samples: expected at least 1 with resample_every 0, where there is no pool, got 0")
        if kind not in (*DISTILL_LOSSES, FULL_SOFTMAX):
            raise ValueError(f"kind: expected one of {[*DISTILL_LOSSES, FULL_SOFTMAX]}, got {kind!r}")
        if scores not in ("logits", "shares"):
            raise ValueError(f"scores: expected 'logits' or 'shares', got {scores!r}")
        self.method, self.seen, self.seed = method, seen, seed
        self.partition = partition or Partition.whole(len(seen.indptr) - 1, n_items)
        self.learners = tuple(name for name in LEARNERS if name in learners)
        self.samples, self.resample_every, self.most = samples, resample_every, pool
        if method.list_size:
            self.samples, self.most = 0, method.list_size
        self.gradual = resample == "gradual"
        self.guide, self.ema = guide, ema
        self.kind, self.tau_learner, self.tau_guide, self.scores = kind, tau_learner, tau_guide, scores
        self.pool: Tensor | None = None
        self.step = 0
        self._copies: dict[str, Recommender] = {}  # of the guides
        self._stored: dict[str, dict[str, Tensor]] = {}  # what a checkpoint had of them, until the models are there
        if popularity is None:
            popularity = torch.bincount(seen.indices, minlength=n_items)
        method.prepare(seen, popularity, self.partition, seed)
        if method.own_loss:
            for name in self.learners:
                self._check_loss(name)

    @classmethod
    def from_config(
        cls,
        config: DistillConfig,
        seen: Seen,
        seed: int,
        partition: Partition,
        popularity: Tensor | None = None,
    ) -> Distiller | None:
        """The distiller of a run; None where the settings choose none.

        Raises:
            UserError: see `make_method`.
        """
        method = make_method(config)
        if method is None:
            return None
        weights = {"teacher": config.lambda_teacher, "student": config.lambda_student}
        return cls(
            method,
            seen,
            partition.n_items,
            learners=[name for name, weight in weights.items() if weight],
            samples=config.samples,
            resample_every=config.resample_every,
            resample=config.resample,
            pool=config.pool_size,
            guide=config.guide,
            ema=config.ema,
            kind=config.loss,
            tau_learner=config.tau_learner,
            tau_guide=config.tau_guide,
            scores=config.guide_scores,
            seed=seed,
            popularity=popularity,
            partition=partition,
        )

    def __call__(
        self, users: Tensor, teacher: Recommender, student: Recommender, queries: Any = None
    ) -> dict[str, Tensor]:
        """The losses of one step, scalars with the gradient of their learner; call it once a step.

        Args:
            users: [B] int64, repeats allowed.
            queries: what the models take for these rows, such as a dict of tensors; by default the users. Without a pool, since
                that is drawn for other users too.
        """
        if queries is None:
            queries = users
        elif self.resample_every:
            raise ValueError("queries: expected none with resample_every > 0, whose pool is drawn by the users' ids")
        self.resample(teacher, student, self.step)
        generator = torch.Generator().manual_seed(seed_of(self.seed, "distill", self.step))
        drawn = self.draw(teacher, student, users, self.step, generator, queries=queries)
        models, guides = {"teacher": teacher, "student": student}, self.guides(teacher, student)
        losses = {}
        for name, draws in drawn.items():
            ids = draws.ids.clamp(min=0)
            scores, guide = listed_scores(models[name], queries, ids), guide_scores(guides[name], queries, ids)
            if self.scores == "shares":
                draws, guide = of_shares(draws, guide)
            losses[name] = self.loss(name, scores, guide, draws)
        self.step += 1
        return losses

    def loss(self, learner: str, scores: Tensor, guide_scores: Tensor, draws: Draws) -> Tensor:
        """The method's loss, or `bdkernels.distill_loss`: see `Method.loss`.

        Raises:
            ValueError: the kind is full_softmax, which takes the scores of all items and is of the `Trainer` alone.
        """
        if self.kind == FULL_SOFTMAX:
            raise ValueError(
                "kind: 'full_softmax' needs more than the scores of a list: train by the Trainer, or give softmax_loss the drawn"
                " items as positives with weights"
            )
        if self.method.own_loss:
            return self.method.loss(learner, scores, guide_scores, draws)
        return distill_loss(scores, guide_scores, self.tau_learner, self.tau_guide, draws.mask, kind=self.kind)

    def guides(self, teacher: Recommender, student: Recommender) -> dict[str, Recommender]:
        """Whom each learner follows: the other model, or the copy of it that `guide` describes."""
        models = {"teacher": teacher, "student": student}
        if self.guide == "live":
            return {name: models[GUIDES[name]] for name in self.learners}
        if not self._copies:
            for name in (GUIDES[learner] for learner in self.learners):
                self._copies[name] = copy.deepcopy(models[name])
                self._copies[name].requires_grad_(False)
                self._copies[name].train(False)
                if name in self._stored:
                    self._copies[name].load_state_dict(self._stored[name])
            self._stored = {}
        return {name: self._copies[GUIDES[name]] for name in self.learners}

    @torch.no_grad()
    def _average(self, teacher: Recommender, student: Recommender) -> None:
        """Before a step: take the models as they are into the averages that are followed."""
        begun = bool(self._copies or self._stored)
        models, guides = {"teacher": teacher, "student": student}, self.guides(teacher, student)
        for learner in self.learners if begun else ():
            average, model = guides[learner], models[GUIDES[learner]]
            for own, now in zip(average.parameters(), model.parameters(), strict=True):
                own.lerp_(now, 1 - self.ema)
            for own, now in zip(average.buffers(), model.buffers(), strict=True):
                own.copy_(now)

    def resample(self, teacher: Recommender, student: Recommender, step: int, steps: int = 1) -> None:
        """Draw anew for the users whose turn comes before this step.

        Every user's turn comes once in `resample_every` epochs: all at their start, or with resample "gradual" CHUNK users at a
        time at even distances, so that no step waits for a whole resampling. Whose turn it is depends on the step's number alone,
        and the pool is all the state there is, so a resumed run goes on as it would have. In the first `resample_every` epochs of
        "gradual", users whose turn has not come yet are not distilled.

        Args:
            step: number of the step, from 0.
            steps: how many steps an epoch has.
        """
        if self.guide == "ema":
            self._average(teacher, student)
        self.method.refresh(teacher, student, step)
        if self.resample_every == 0:
            return
        device = self.seen.indptr.device
        if self.pool is None:
            shape = len(self.partition.users), len(self.learners) * self.most
            self.pool = torch.full(shape, -1, dtype=torch.int32, device=device)
        cycle = self.resample_every * steps
        first, last = due(step % cycle, cycle if self.gradual else 1, self.partition.n_users)
        for turn in self.partition.turns(first, last, CHUNK):
            users = torch.arange(turn.start, turn.stop, device=device) - self.partition.users.start
            drawn = self.ask(teacher, student, users, self.most, step // cycle * self.resample_every, None)
            self.pool[users] = torch.cat([ids.where(mask, -1) for ids, mask in drawn.values()], dim=1).int()

    def draw(
        self,
        teacher: Recommender,
        student: Recommender,
        users: Tensor,
        step: int,
        generator: torch.Generator,
        share: Share | None = None,
        queries: Any = None,
    ) -> dict[str, Draws]:
        """Items for users [B] int64 (repeats allowed), for each row and learner.

        Args:
            step: number of the training step; other steps draw other items.
            generator: picks places in the pool, where there is one.
            share: whose users these are, if they are not a whole batch: they draw what they draw in the whole batch.
            queries: see `Request`; by default the users.

        Returns:
            {learner: [B, C] draws}, where C is `samples`, or all of the pool; where the mask is False there is nothing to learn.
        """
        share = share or Share(users, None, users)
        if self.pool is None:  # the rows of a user are numbered in the whole batch, so that each draws items of its own
            nth = share.keep(occurrence(share.everyone))
            return self.ask(teacher, student, users, self.samples or self.most, step, nth, queries)
        if self.samples == 0:
            lists = self.pool[users].long().split(self.most, 1)
            return {
                name: Draws(i.contiguous(), i.contiguous() >= 0) for name, i in zip(self.learners, lists, strict=True)
            }
        places = torch.randint(self.most, (share.everyone.shape[0], self.samples), generator=generator)
        places = share.keep(places).to(users.device) + users[:, None] * self.pool.shape[1]
        found = [self.pool.take(places + at * self.most).long() for at in range(len(self.learners))]
        return {name: Draws(ids, ids >= 0) for name, ids in zip(self.learners, found, strict=True)}

    def numbers(self, teacher: Recommender, student: Recommender, epoch: int) -> dict[str, float]:
        """What the history has of the draws after so many epochs: see `Method.numbers`."""
        cycle = max(1, self.resample_every)
        return dict(self.method.numbers(teacher, student, epoch // cycle * cycle))

    def ask(
        self,
        teacher: Recommender,
        student: Recommender,
        users: Tensor,
        k: int,
        step: int,
        nth: Tensor | None,
        queries: Any = None,
    ) -> dict[str, Draws]:
        """The method's own draws, of k items, in the order of `learners`. nth: see `Request.occurrence`."""
        asked = Request(
            users, users if queries is None else queries, self.seen.rows(users), k, self.learners, self.seed, step, nth
        )
        if self.guide != "live":
            found: dict[str, Draws] = {}
            for name, guide in self.guides(teacher, student).items():
                pair = {"teacher": teacher, "student": student} | {GUIDES[name]: guide}
                found |= self.method.draw(pair["teacher"], pair["student"], asked._replace(learners=(name,)))
        else:
            found = self.method.draw(teacher, student, asked)
        if {*found} != {*self.learners}:
            raise UserError(
                f"{type(self.method).__name__}.draw gave draws of {sorted(found)}, asked for {sorted(self.learners)}: return"
                " a dict with one entry for each of asked.learners"
            )
        for name, (ids, mask) in found.items():
            if ids.shape != (len(users), k) or mask.shape != ids.shape or (ids.dtype, mask.dtype) != KINDS:
                raise UserError(
                    f"{type(self.method).__name__}.draw gave the {name} ids {list(ids.shape)} {ids.dtype} and mask"
                    f" {list(mask.shape)} {mask.dtype}: give int64 and bool, {[len(users), k]} each; where fewer items are"
                    " found, leave the mask False"
                )
        return {name: found[name] for name in self.learners}

    def _check_loss(self, learner: str) -> None:
        """Raise UserError where the method's own loss cannot be trained by, tried on rows that lack draws."""
        device, k = self.seen.indptr.device, self.samples or self.most
        ids = torch.zeros(2, k, dtype=torch.int64, device=device)
        ids[0, -1] = ids[1] = -1
        scores = torch.linspace(-1, 1, 2 * k, device=device).view(2, k).requires_grad_()
        loss = self.method.loss(learner, scores, -scores.detach(), Draws(ids, ids >= 0))
        title = f"{type(self.method).__name__}.loss"
        if not isinstance(loss, Tensor) or loss.shape != () or not loss.isfinite():
            found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise UserError(f"{title} must give a finite scalar tensor, for rows without a draw too, found {found}")
        (gradient,) = torch.autograd.grad(loss, scores, allow_unused=True) if loss.requires_grad else (None,)
        if gradient is None or not gradient.isfinite().all():
            raise UserError(f"{title} must have a finite gradient by the learner's scores, for rows without a draw too")

    def state_dict(self) -> dict[str, Any]:
        """All that a loop needs to go on bit for bit: the tensors themselves, not copies, and the number of the step."""
        return {"step": self.step, **self.tensors()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, from copies of its tensors."""
        self.load_tensors({name: value.clone() for name, value in state.items() if name != "step"})
        self.step = int(state["step"])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of `state_dict`: the pool, copies of guides, and what the method keeps."""
        found = {f"state.{name}": value for name, value in self.method.state_dict().items()}
        for name, guide in self._copies.items():
            found |= {f"guides.{name}.{key}": value for key, value in guide.state_dict().items()}
        for name, tensors in self._stored.items():
            found |= {f"guides.{name}.{key}": value for key, value in tensors.items()}
        return found if self.pool is None else found | {"pool": self.pool}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` gave."""
        device = self.seen.indptr.device
        moved = {name: value.to(device) for name, value in tensors.items()}
        self.pool = moved.get("pool")
        self._copies = {}
        self._stored = {name: values for name in GUIDES if (values := below(f"guides.{name}.", moved))}
        self.method.load_state_dict(below("state.", moved))

    def load_grown(self, tensors: Mapping[str, Tensor], growth: Growth, models: Mapping[str, Recommender]) -> None:
        """Restore what `tensors` gave before users or items were added.

        models: the "teacher" and the "student", grown: copies of guides take their rows of the new users and items.

        Raises:
            UserError: the method does not say how a tensor of its own grows.
        """
        grown, kinds = {}, self.method.row_kinds()
        guides = {name: below(f"guides.{name}.", tensors) for name in GUIDES}
        of_guides = {name: growth.kinds(guides[name], model) for name, model in models.items()}
        for name, old in tensors.items():
            head, _, key = name.partition(".")
            if head == "pool":
                grown[name] = growth.pool(old)
            elif head == "guides":
                guide, _, key = key.partition(".")
                kind = of_guides[guide].get(key)
                grown[name] = old if kind is None else growth.rows(kind, old, models[guide].state_dict()[key])
            elif key in kinds:
                grown[name] = growth.rows(kinds[key], old) if kinds[key] else old
            else:
                raise UserError(
                    f"the run cannot grow: {type(self.method).__name__}.row_kinds does not say whether {key!r} of the method's"
                    " state has a row a user, a row an item or neither: let it say so, or start a new run"
                )
        self.load_tensors(grown)


def due(place: int, places: int, n_users: int) -> tuple[int, int]:
    """The range of users whose turn it is at this place: whole CHUNKs, spread evenly over `places`, none after the last."""
    chunks = -(-n_users // CHUNK)
    first, last = (min(n_users, CHUNK * -(-chunks * min(at, places) // places)) for at in (place, place + 1))
    return first, last
