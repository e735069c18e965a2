"""What a run will take, from its settings, its sizes and what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bidistill.config import Config
from bidistill.data.sizes import Sizes
from bidistill.plan.costs import Costs
from bidistill.training.fitted import settled
from bidistill.training.memory import Allocation, checkpoint, disk_there, gb, memory, model_sizes, shortage, tables
from bidistill.training.phases import PHASES, TITLES, learn_in
from bidistill.training.settings import decided
from bidistill.training.timing import share_of


class Job(NamedTuple):
    """Something that a run does so many times, and the seconds of one time."""

    name: str
    seconds: float
    times: float

    @property
    def total(self) -> float:
        return self.seconds * self.times


@dataclass(frozen=True)
class Plan:
    """What a run takes if no phase ends before its last epoch.

    Attributes:
        memory: parts whose sum is the peak.
        times: jobs whose sum is the run.
        disk: bytes that the run folder needs at most.
        problems: what does not fit, a sentence each.
        remarks: which models train without the fused step, and what was decided for settings that are "auto", a sentence each.
    """

    sizes: Sizes
    memory: list[Allocation]
    times: list[Job]
    disk: int
    problems: list[str]
    remarks: list[str]

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(part.bytes for part in self.memory)

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(job.total for job in self.times)

    def values(self) -> dict[str, Any]:
        """Plain values, for JSON: bytes and seconds."""
        return {
            "sizes": self.sizes._asdict(),
            "memory": {part.name: part.bytes for part in self.memory},
            "peak_bytes": self.peak,
            "times": [{**job._asdict(), "total_s": job.total} for job in self.times],
            "total_s": self.seconds,
            "disk_bytes": self.disk,
            "problems": self.problems,
            "remarks": self.remarks,
        }


def make_plan(config: Config, sizes: Sizes, costs: Costs) -> Plan:
    """The plan of a run: `bidistill train` with these settings, on data of these sizes, on the machine of these costs."""
    config, remarks = planned(config, sizes, costs)
    return made_plan(config, sizes, memory(config, sizes), jobs_of(config, sizes, costs), remarks)


def made_plan(config: Config, sizes: Sizes, parts: list[Allocation], jobs: list[Job], remarks: list[str]) -> Plan:
    """A plan of this memory and these jobs, with what does not fit on this machine."""
    # The old checkpoint goes when the new one is there; the split, the models.
    disk = 2 * checkpoint(config, sizes) + 24 * sizes.interactions
    disk += 2 * sum(each.state for each in model_sizes(config, sizes).values() if not each.learns)
    problems = []
    if short := shortage(parts):
        problems.append(short)
    free = disk_there(Path(config.run.out or "."))
    if disk > free:
        problems.append(f"disk: {gb(disk)} are needed and {gb(free)} are free where the run folder will be")
    return Plan(sizes, parts, jobs, disk, problems, remarks)


def jobs_of(config: Config, sizes: Sizes, costs: Costs) -> list[Job]:
    """What a run does, in its order."""
    checkpoint_bytes = checkpoint(config, sizes)
    train, distill = config.train, config.distill
    steps = math.ceil(sizes.train / train.batch_size)
    ranked = {name: sizes.evaluated * costs.rank[name].at(sizes.items) for name in costs.rank}
    found = model_sizes(config, sizes)
    table_bytes = tables(config.teacher, sizes) + tables(config.student, sizes)
    jobs = [
        Job("starting Python, and the report", costs.program, 1),
        Job("reading and splitting", costs.read * sizes.interactions, 1),
        Job("making the trainer", costs.start * sizes.train + costs.tables * table_bytes, 1),
    ]
    for phase in PHASES:
        epochs = train.epochs if phase == "joint" else train.pretrain_epochs
        one_call = phase != "joint" and found[phase.removeprefix("pretrain_")].fitted
        epochs = 1 if one_call else epochs
        names, title = learn_in(phase, config), TITLES[phase]
        jobs.append(Job(f"{title}: step", costs.step[phase], 0 if one_call else steps * epochs))
        if phase == "joint" and distill.method != "none":
            one = costs.draw.at(min(sizes.items, int(distill.subset) or sizes.items))
            if distill.resample_every == 0:
                jobs.append(Job(f"{title}: draws of a step", one * train.batch_size, steps * epochs))
            else:
                times = epochs / distill.resample_every
                times = times if distill.resample == "gradual" else math.ceil(times)
                jobs.append(Job(f"{title}: resampling of all pools", one * sizes.users, times))
        # At the start and every so many epochs, then val and test of the best state, and the report's two comparisons.
        looks = 1 + math.ceil(epochs / train.eval_every) + 2 + 1
        jobs.append(Job(f"{title}: evaluation", sum(ranked[name] for name in names), looks))
        if phase == "joint" and "teacher" not in names:
            jobs.append(Job("the report's evaluation of the teacher", ranked["teacher"], 1))
        saves = 1 + epochs // config.run.checkpoint_every
        if config.run.checkpoint_steps:
            saves += epochs * ((steps - 1) // config.run.checkpoint_steps)
        jobs.append(Job(f"{title}: checkpoint", costs.save * checkpoint_bytes, saves if config.run.out else 0))
    return jobs


def planned(config: Config, sizes: Sizes, costs: Costs) -> tuple[Config, list[str]]:
    """The settings as a run would have them: with numbers in the place of "auto", from what `measure` found, and who learns; and
    what there is to remark.
    """
    found = model_sizes(config, sizes)
    fitted = [
        f"the {name} is fitted in one call, which these times leave out" for name, each in found.items() if each.fitted
    ]
    config, remarks = _decided(settled(config, found), sizes, costs)
    return config, [*remarks, *fitted]


def _decided(config: Config, sizes: Sizes, costs: Costs) -> tuple[Config, list[str]]:
    if config.distill.subset != "auto" or config.distill.method == "none":
        return config, [*costs.unfused]
    config, why = decided(config, sizes, share_of(config, sizes, costs.draw, costs.step["joint"]))
    return config, [*costs.unfused, why]
