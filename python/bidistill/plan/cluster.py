"""A run on several processes, on paper: work and memory divided, and what travels, by what the code sends.

Derived, not measured: each process is taken to compute as this machine does with its threads, and the network to have the stated
bandwidth and latency. W processes; B rows, M negatives and k draws a row in a step; d_t and d_s factors. Every process

- holds 1 / W of each table, of the optimizers' state, of the pool and of the seen items, but all interactions and their order;
- asks for the items that its B / W rows list, (1 + M + 2 k) each, gets their factors and biases of both models, and sends as many
  gradients back: B / W (1 + M + 2 k) (8 + 8 (d_t + d_s + 2)) bytes a step, in STEP_CALLS exchanges;
- draws for 1 / W of the users, whose factors and P proposals go to every shard, and come back with scores and counts of both
  models: W (4 (d_t + d_s) + 28 P) bytes a user (bdkernels/distributed/shard.py), where P is about PROPOSALS times the draws;
- counts for the users of all processes over 1 / W of the items: as many scores as N / W items for all users.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from bidistill.config import Config
from bidistill.data.sizes import Sizes
from bidistill.distill.method import list_sizes
from bidistill.errors import UserError
from bidistill.models.sizes import size_of_kind
from bidistill.plan.costs import Costs
from bidistill.plan.estimate import Job, Plan, jobs_of, made_plan, planned
from bidistill.training.memory import divided, memory

STEP_CALLS = 8  # exchanges of a training step: sizes, ids, rows, gradients, and what all agree on
ROUND_CALLS = 9  # of a call of `sample`: two rounds of four, and the question that ends them
PROPOSALS = 12.0  # a draw, both directions together, at the acceptance of the released weights (design: 48 % and 12 %)


class Network(NamedTuple):
    """What is assumed of it.

    Attributes:
        gbs: 10^9 bytes a second that each process can send.
        latency: seconds of one exchange of a few bytes.
    """

    gbs: float = 1.25
    latency: float = 100e-6


def widths(config: Config) -> int:
    """Numbers of a row of both models' tables. Raises UserError where a model cannot lie on several processes."""
    total = 0
    for name in ("teacher", "student"):
        width = size_of_kind(config.model(name).build_config(1, 1)).width
        if width is None:
            raise UserError(
                f"{name}.kind {config.model(name).kind!r} cannot lie on several processes: plan without --world"
            )
        total += width
    return total


def step_bytes(config: Config, sizes: Sizes, processes: int) -> float:
    """Bytes that a process sends in a training step of the joint phase."""
    listed = 1 + config.train.drawn_negatives + 2 * list_sizes(config.distill)[1]
    width = widths(config) + 2
    return config.train.batch_size / processes * listed * (8 + 8 * width) * (processes - 1) / processes


def draw_bytes(config: Config, processes: int) -> float:
    """Bytes that a process sends for the draws of one of its users."""
    k = list_sizes(config.distill)[0 if config.distill.resample_every else 1]
    return (processes - 1) * (4 * widths(config) + 28 * PROPOSALS * k)


def world_plan(config: Config, sizes: Sizes, costs: Costs, processes: int, network: Network) -> Plan:
    """The plan of one of W processes."""
    config, remarks = planned(config, sizes, costs)
    jobs = []
    for job in jobs_of(config, sizes, costs):
        if job.name.endswith(
            (": step", ": resampling of all pools", ": draws of a step", ": evaluation", ": checkpoint")
        ):
            job = job._replace(seconds=job.seconds / processes)
        jobs.append(job)
        if job.name.endswith(": step"):
            sent = step_bytes(config, sizes, processes) / 1e9 / network.gbs + STEP_CALLS * network.latency
            jobs.append(Job(f"{job.name}, its traffic", sent, job.times))
        if job.name.endswith((": resampling of all pools", ": draws of a step")):
            users = (sizes.users if "resample" in job.name else config.train.batch_size) / processes
            calls = math.ceil(users / 1024) * ROUND_CALLS
            sent = users * draw_bytes(config, processes) / 1e9 / network.gbs + calls * network.latency
            jobs.append(Job(f"{job.name}, their traffic", sent, job.times))
    return made_plan(config, sizes, divided(memory(config, sizes), processes), jobs, remarks)
