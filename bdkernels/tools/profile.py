"""Time one operator at sizes of your own, next to what this machine reaches: `python -m bdkernels.profile rank --users 64`.

Prints the median time with quartiles, ns a score, GFLOP/s of the products, GB/s (inputs and outputs once), each beside the
machine's measured peak, and the peak extra memory; --trace writes a Chrome trace in which every operator has its own name.
On a GPU the time is that between two events, and the floor is printed: what the work takes at the card's own peaks, at least.
Losses are timed forward and backward, fused_step with SparseAdam. Inputs are made up: uniform factors, random seen items.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bdkernels import backends, functional, losses
from bdkernels.optim import SparseAdam
from bdkernels.tools.cards import Card, card, floor_s
from bdkernels.tools.measure import Peaks, Work, device_seconds, extra_mb, peaks, quartiles, rates
from bdkernels.types.factors import Factors
from bdkernels.types.seen import Seen

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Workload(NamedTuple):
    """One operator with its inputs: what to call, and what the call must do at least."""

    call: Callable[[], Any]
    work: Work


def factors(args: argparse.Namespace, dim: int) -> Factors:
    """Users and items between -1 and 1, of the asked dtype."""
    return Factors(*(table(args, rows, dim) for rows in (args.users, args.items)))


def table(args: argparse.Namespace, *shape: int) -> Tensor:
    return torch.empty(shape, device=args.device).uniform_(-1, 1).to(DTYPES[args.dtype])


def ids(args: argparse.Namespace, columns: int, rows: int | None = None) -> Tensor:
    return torch.randint(0, args.items, (rows or args.users, columns), device=args.device)


def seen(args: argparse.Namespace) -> Seen:
    users = torch.arange(args.users, device=args.device).repeat_interleave(args.seen)
    return Seen.from_pairs(users, ids(args, args.seen).flatten(), args.users)


def nbytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def catalog_work(args: argparse.Namespace, models: list[Factors], *more: Tensor) -> Work:
    """Every item scored for every user under every model."""
    pairs = args.users * args.items
    flops = sum(2 * pairs * f.user_factors.shape[1] for f in models)
    return Work(pairs * len(models), flops, nbytes(*more) + sum(nbytes(f.user_factors, f.item_factors) for f in models))


def score(args: argparse.Namespace) -> Workload:
    f, listed = factors(args, args.dims), ids(args, args.listed)
    rows = listed.numel() * args.dims
    traffic = nbytes(f.user_factors, listed) + rows * f.item_factors.element_size() + 4 * listed.numel()
    return Workload(lambda: functional.score(f, listed, backend=args.backend), Work(listed.numel(), 2 * rows, traffic))


def rank(args: argparse.Namespace) -> Workload:
    f, listed, rows = factors(args, args.dims), ids(args, args.listed), seen(args)
    work = catalog_work(args, [f], listed, listed, *rows)
    return Workload(lambda: functional.rank(f, listed, rows, backend=args.backend), work)


def count_above(args: argparse.Namespace) -> Workload:
    f, ties, rows = factors(args, args.dims), ids(args, args.thresholds), seen(args)
    limits = functional.score(f, ties)
    work = catalog_work(args, [f], limits, ties, ties, *rows)
    return Workload(lambda: functional.count_above(f, limits, ties, rows, backend=args.backend), work)


def count_above_block(args: argparse.Namespace) -> Workload:
    scores, ties, rows = torch.rand(args.users, args.items, device=args.device), ids(args, args.thresholds), seen(args)
    limits = scores.gather(1, ties)
    work = Work(scores.numel(), 0, nbytes(scores, limits, ties, ties, *rows))
    return Workload(lambda: functional.count_above_block(scores, limits, ties, rows, backend=args.backend), work)


def topk(args: argparse.Namespace) -> Workload:
    f, rows = factors(args, args.dims), seen(args)
    work = catalog_work(args, [f], *rows)
    work = work._replace(bytes=work.bytes + args.users * args.k * 12)  # a float32 and an int64 for each of the best
    return Workload(lambda: functional.topk(f, args.k, rows, backend=args.backend), work)


def sample(args: argparse.Namespace) -> Workload:
    teacher, student = (factors(args, dim) for dim in args.dims)
    rows = seen(args)
    work = catalog_work(args, [teacher, student], *rows)
    work = work._replace(bytes=work.bytes + 2 * args.users * args.k * 8)
    row = {"user_ids": torch.arange(args.users, device=teacher.user_factors.device), "step": 0, "backend": args.backend}
    return Workload(lambda: functional.sample(teacher, student, args.k, rows, **row), work)


def distill_loss(args: argparse.Namespace) -> Workload:
    learner, guide = (table(args, args.users, args.k) for _ in range(2))
    learner.requires_grad_()

    def call() -> None:
        learner.grad = None
        losses.distill_loss(learner, guide, backend=args.backend).backward()

    return Workload(call, Work(learner.numel(), 0, nbytes(learner, guide, learner)))


def softmax_loss(args: argparse.Namespace) -> Workload:
    users, items = (table(args, rows, args.dims).requires_grad_() for rows in (args.users, args.items))
    rows, positives = torch.randint(0, args.users, (args.batch,), device=args.device), ids(args, 1, args.batch)[:, 0]

    def call() -> None:
        users.grad = items.grad = None
        losses.softmax_loss(Factors(users, items), rows, positives, backend=args.backend).backward()

    pairs = args.users * args.items
    work = Work(pairs, 6 * pairs * args.dims, nbytes(rows, positives) + 2 * nbytes(users, items))
    return Workload(call, work)


def fused_loss(args: argparse.Namespace) -> Workload:
    users, items = (table(args, rows, args.dims).requires_grad_() for rows in (args.users, args.items))
    batch = step_batch(args)

    def call() -> None:
        users.grad = items.grad = None
        losses.fused_loss(users, items, None, *batch, backend=args.backend).loss.backward()

    return Workload(call, step_work(args, items, batch, 2))  # rows are read for the scores, written as gradients


def fused_step(args: argparse.Namespace) -> Workload:
    users, items = (table(args, rows, args.dims) for rows in (args.users, args.items))
    optimizer, batch = SparseAdam((users, items), lr=1e-3), step_batch(args)
    call = partial(losses.fused_step, optimizer, *batch, backend=args.backend)
    return Workload(call, step_work(args, items, batch, 7))  # and read and written by the update, with two moments


def step_batch(args: argparse.Namespace) -> tuple[Any, ...]:
    """Users, positives, negatives, draws, the guide's scores."""
    users = torch.randint(0, args.users, (args.batch,), device=args.device)
    positives, negatives, drawn = (ids(args, n, args.batch) for n in (1, args.negatives, args.k))
    draws = functional.Draws(drawn, torch.ones_like(drawn, dtype=torch.bool))
    return users, positives[:, 0], negatives, draws, table(args, args.batch, args.k)


def step_work(args: argparse.Namespace, items: Tensor, batch: tuple[Any, ...], passes: int) -> Work:
    scores = args.batch * (1 + args.negatives + args.k)
    rows = (scores + args.batch) * args.dims * items.element_size()
    users, positives, negatives, draws, guide = batch
    listed = nbytes(users, positives, negatives, draws.ids, guide)
    return Work(scores, 6 * scores * args.dims, passes * rows + listed)


OPERATORS: dict[str, tuple[Callable[[argparse.Namespace], Workload], tuple[str, ...]]] = {
    "score": (score, ("dims", "listed")),
    "rank": (rank, ("dims", "listed", "seen")),
    "count_above": (count_above, ("dims", "thresholds", "seen")),
    "count_above_block": (count_above_block, ("thresholds", "seen")),
    "topk": (topk, ("dims", "k", "seen")),
    "sample": (sample, ("dims", "k", "seen")),
    "distill_loss": (distill_loss, ("k",)),
    "softmax_loss": (softmax_loss, ("dims", "batch")),
    "fused_loss": (fused_loss, ("dims", "k", "negatives", "batch")),
    "fused_step": (fused_step, ("dims", "k", "negatives", "batch")),
}
SIZES = {  # default, what it is
    "users": (64, "users (a training step: rows of the user table)"),
    "items": (100_000, "items of the catalog"),
    "dims": (64, "factors of a user or an item (sample: of the teacher and of the student)"),
    "listed": (64, "listed items a user"),
    "thresholds": (64, "thresholds a user"),
    "k": (32, "items a user: best ones, draws, or distilled ones"),
    "seen": (20, "seen items a user, excluded; repeats are dropped"),
    "negatives": (4, "negatives for each positive"),
    "batch": (1024, "training interactions in the step"),
    "repeats": (10, "timed calls, after one that warms up"),
}


def positive(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


class Parser(argparse.ArgumentParser):
    """Errors of one sentence, with exit code 2."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def parse(argv: list[str] | None) -> tuple[Parser, argparse.Namespace]:
    """The command line: one subcommand an operator, with just the sizes that it has."""
    parser = Parser(prog="python -m bdkernels.profile", description=__doc__)
    commands = parser.add_subparsers(dest="operator", required=True, metavar="OPERATOR", help=", ".join(OPERATORS))
    for name, (_, sizes) in OPERATORS.items():
        command = commands.add_parser(name, allow_abbrev=False, description=f"Time bdkernels.{name}.")
        for size in ("users", "items", *sizes, "repeats"):
            default, about = SIZES[size]
            pair = name == "sample" and size == "dims"
            command.add_argument(
                "-k" if size == "k" else f"--{size}",
                type=positive,
                default=[default, default // 4] if pair else default,
                nargs=2 if pair else None,
                metavar=("TEACHER", "STUDENT") if pair else "N",
                help=f"{about} (default: %(default)s)",
            )
        command.add_argument("--backend", help=f"one of {', '.join(backends.names())} (default: the best)")
        command.add_argument("--dtype", choices=DTYPES, default="float32", help="of both tables (default: float32)")
        command.add_argument("--device", default="cpu", help="torch device of the inputs (default: cpu)")
        command.add_argument("--threads", type=positive, help="CPU threads (default: torch's)")
        command.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace of one call (JSON)")
    return parser, parser.parse_args(argv)


def prepare(args: argparse.Namespace) -> Workload:
    """Inputs and call. Raises ValueError or BackendError where they cannot be."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.trace and not args.trace.resolve().parent.is_dir():
        raise ValueError(f"--trace: expected a file in a folder that exists, got {args.trace}")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {args.device} cannot be used here: {str(error).splitlines()[0]}") from error
    torch.manual_seed(0)
    return OPERATORS[args.operator][0](args)


def write_trace(call: Callable[[], Any], path: Path) -> None:
    """A Chrome trace of one call: operators under their names, such as bdkernels::rank and the stages below it."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_initialized()
    with profile(activities=activities, record_shapes=True) as found:
        call()
    found.export_chrome_trace(str(path))


def describe(args: argparse.Namespace) -> str:
    """Operator, sizes and where it runs, in a line."""
    sizes = ", ".join(f"{size} {getattr(args, size)}" for size in ("users", "items", *OPERATORS[args.operator][1]))
    device = torch.device(args.device)
    backend = backends.choose(device, args.backend, DTYPES[args.dtype])
    where = f"{args.dtype}, backend {backends.describe(backend)}, {device}, {torch.get_num_threads()} threads"
    return f"{args.operator}: {sizes}; {where}, torch {torch.__version__}"


def report(times: list[float], work: Work, best: Peaks, extra: float | None, gpu: Card | None = None) -> str:
    """What was measured, one figure a line; on a GPU the floor, too."""
    t = quartiles(times)
    r = rates(work, t["median_s"], best)
    quart = f"{t['q25_s'] * 1e3:.3f}-{t['q75_s'] * 1e3:.3f}"
    lines = [f"time       {t['median_s'] * 1e3:.3f} ms (quartiles {quart}, {len(times)} calls)"]
    lines.append(f"a score    {r['ns_a_score']:.3f} ns")
    for name, unit, key, peak in (("products", "GFLOP/s", "gflops", best.gflops), ("traffic", "GB/s", "gbs", best.gbs)):
        share = f"{r[key]:.2f} {unit}, {r[f'percent_of_peak_{key}']:.1f} % of" if r[key] else "none;"
        lines.append(f"{name:<10} {share} the {peak:.1f} {unit} that torch reaches here")
    if gpu is not None:
        lines.append(f"floor      {floor_line(work, t['median_s'], gpu)}")
    lines.append("memory     " + ("not known on this system" if extra is None else f"{extra:.1f} MB above the inputs"))
    return "\n".join(lines)


def floor_line(work: Work, median_s: float, gpu: Card) -> str:
    """The least time by the card's description, and how much of it was achieved."""
    if gpu.unknown:
        return f"not known for {gpu}: {gpu.unknown}"
    best = gpu.peaks()
    least = floor_s(work, best)
    bound = "arithmetic" if work.flops / best.gflops > work.bytes / best.gbs else "memory"
    return (
        f"{least * 1e3:.3f} ms by {bound}, of which {100 * least / median_s:.1f} % was reached ({gpu}: "
        f"{best.gflops / 1e3:.1f} TFLOP/s of fp32, {best.gbs / 1e3:.2f} TB/s)"
    )


def main(argv: list[str] | None = None) -> None:
    parser, args = parse(argv)
    try:
        job = prepare(args)
        extra = extra_mb(job.call)  # the first call, before anything has memory to spare; it warms up, too
        times = [device_seconds(job.call) for _ in range(args.repeats)]
        if args.trace:
            write_trace(job.call, args.trace)
    except (ValueError, backends.BackendError, torch.OutOfMemoryError, OSError) as error:
        parser.error(str(error))
    found = report(times, job.work, peaks(args.device), extra, card(args.device))
    sys.stdout.write(describe(args) + "\n" + found + "\n")
