"""What sample(subset=m) costs and changes: `python -m benchmarks.subset [SPLIT.npz] [--catalogs 100 400] [--seeds 0 1 2]`.

Cost: time of exact draws and of draws by ranks from 10,000 items, over growing catalogs, interleaved. Error: on models after
their pretraining, how far estimated ranks are off beside Hoeffding's bound, and the total variation between the distributions of
the draws, for one subset and for the average over subsets, which is what many resamplings draw from; with any items, and with
some of every popularity (`PopularityStrata`), as the trainer takes them. Quality: test metrics of joint training with either
ranks, from the same pretraining, paired by seed, and of the control. Without a file: MovieLens-100K with the settings of the
demo. Writes benchmarks/results/subset.json.
"""

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from bidistill import Config, Split, Trainer, matched
from bidistill.cli.demo import SETTINGS
from bidistill.data import movielens_100k
from bidistill.data.load import load_split
from torch import Tensor

import bdkernels as bd
from bdkernels.backends import reference
from bdkernels.sampling import sampler
from bdkernels.sampling.subset import draw
from bdkernels.tools.measure import quartiles, seconds
from benchmarks.machine import machine
from benchmarks.sample import K, inputs

RESULTS = Path(__file__).parent / "results" / "subset.json"
SIZES, COUNTED, ROUNDS = (10_000, 100_000, 1_000_000, 10_000_000), 10_000, 7
METRICS = ("ndcg@10", "ndcg@50", "recall@50", "mrr")
USERS, SUBSETS, DELTA = 64, 32, 0.05
WEIGHTS = {"to_student": ("tanh", 252.0, False), "to_teacher": ("exp", 2.5, False)}  # the released settings


def cost(n_items: int) -> list[dict[str, Any]]:
    """Median times, 64 users, teacher 64 and student 16, 32 draws a direction."""
    teacher, student, seen = inputs(64, n_items, (64, 16))
    calls = {
        m: partial(
            bd.sample,
            teacher,
            student,
            K,
            seen,
            user_ids=torch.arange(len(teacher.user_factors)),
            step=0,
            seed=7,
            subset=m,
        )
        for m in (None, min(COUNTED, n_items - 1))
    }
    times: dict[int | None, list[float]] = {m: [] for m in calls}
    for call in calls.values():
        call()
    for _ in range(ROUNDS):
        for m, call in calls.items():
            times[m].append(seconds(call))
    return [{"items": n_items, "catalog": m, **quartiles(found), "repeats": ROUNDS} for m, found in times.items()]


def log_weights(batch: sampler.Group, counts: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """[B, N] of each direction, from how many of the counted items come before each item; -inf for what is seen."""
    teacher, student = (batch.ranks(c) for c in counts)
    found = {}
    for name, weight in WEIGHTS.items():
        guide, learner = (teacher, student) if name == "to_student" else (student, teacher)
        found[name] = reference.log_weight(*weight[:2], guide - learner, batch.candidates[:, None], guide)
        if batch.seen is not None:
            found[name][batch.seen.row_of_each(), batch.seen.indices] = -torch.inf
    return found


def counts(batch: sampler.Group) -> tuple[Tensor, ...]:
    """[B, N] by teacher and student."""
    every = torch.arange(batch.teacher.n_items).expand(len(batch.user_ids), -1).contiguous()
    ties = every if batch.subset is None else torch.searchsorted(batch.subset.ids, every)
    return tuple(
        bd.count_above(part, bd.score(f, every), ties, batch.counted.seen)
        for f, part in zip(batch[:2], batch.counted[:2], strict=True)
    )


def error(batch: sampler.Group, m: int, strata: bd.PopularityStrata | None) -> dict[str, Any]:
    """Of ranks and draws, on users of trained models; by items drawn from strata, or from all alike."""
    exact = counts(batch)
    p = {name: log_w.softmax(1).nan_to_num_(0.0) for name, log_w in log_weights(batch, exact).items()}
    mean = {name: torch.zeros_like(q) for name, q in p.items()}
    one: dict[str, list[float]] = {name: [] for name in p}
    off = []
    for step in range(SUBSETS):
        ids = draw(batch.teacher.n_items, m, 1, step) if strata is None else strata.draw(m, 1, step)
        some = batch.among(ids, ids)
        found = counts(some)
        off += [(some.ranks(c) - 1 - e).abs() / batch.candidates[:, None] for c, e in zip(found, exact, strict=True)]
        for name, log_w in log_weights(some, found).items():
            q = log_w.softmax(1).nan_to_num_(0.0)
            one[name].append(float((p[name] - q).abs().sum(1).mean() / 2))
            mean[name] += q / SUBSETS
    errors, bound = torch.stack(off).flatten(), bd.rank_error(m, DELTA)
    row = {
        "catalog": m,
        "strata": strata is not None,
        "rank_error_mean": float(errors.mean()),
        "rank_error_p95": float(errors.kthvalue(int(0.95 * len(errors))).values),
        "bound": bound,
        "delta": DELTA,
        "beyond_the_bound": float((errors > bound).double().mean()),
    }
    for name in p:
        row[f"tv_{name}"] = statistics.mean(one[name])
        row[f"tv_{name}_averaged"] = float((p[name] - mean[name]).abs().sum(1).mean() / 2)
    return row


def users_of(trainer: Trainer) -> sampler.Group:
    """Some users of the trainer's models, as they stand."""
    users = torch.arange(0, trainer.split.n_users, max(1, trainer.split.n_users // USERS))[:USERS]
    seen, models = (
        trainer.engine.seen.rows(users),
        [trainer.engine.learners[name].model for name in ("teacher", "student")],
    )
    candidates = reference.candidate_counts(trainer.split.n_items, len(users), seen, users.device)
    return sampler.Group(*(model.factors(users) for model in models), seen, users, candidates)


def one_seed(split: Split, config: Config, catalogs: list[int], errors: bool) -> tuple[dict[str, Any], list[dict]]:
    """Test metrics by catalog (0: exact; "control": no distillation), and the errors after the pretraining."""
    with TemporaryDirectory() as folder:
        exact = Trainer(config.with_overrides({"run.out": f"{folder}/run"}), split)
        found = {"0": exact.fit().metrics}
        table = []
        for m in catalogs:
            trainer = Trainer(config.with_overrides({"distill.subset": m}), split, warm_start=f"{folder}/run")
            strata = bd.PopularityStrata(torch.from_numpy(np.bincount(split.train_items, minlength=split.n_items)))
            table += [error(users_of(trainer), m, kind) for kind in (None, strata)] if errors else []
            found[str(m)] = trainer.fit().metrics
        alone = matched(exact).with_overrides({"run.out": None})
        control = Trainer(alone, split, warm_start=f"{folder}/run")
        found["control"] = control.fit().metrics
    tests = {name: {model: parts["test"] for model, parts in metrics.items()} for name, metrics in found.items()}
    return tests, table


def summary(seeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a model, metric and catalog, and the change from exact draws, paired by seed."""
    rows = []
    for model in ("teacher", "student"):
        for metric in METRICS:
            for name in seeds[0]:
                values = [seed[name][model][metric] for seed in seeds]
                change = [seed[name][model][metric] / seed["0"][model][metric] - 1 for seed in seeds]
                spread = statistics.stdev(change) if len(change) > 1 else None
                row = {"model": model, "metric": metric, "catalog": name, "mean": statistics.mean(values)}
                rows.append(row | {"values": values, "change": statistics.mean(change), "change_stdev": spread})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.subset", description=__doc__)
    parser.add_argument(
        "split", nargs="?", help=".npz with arrays train, val, test of (user, item) rows, or a saved split"
    )
    parser.add_argument("--catalogs", type=int, nargs="+", default=[100, 400])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--cache", default=".cache", help="where MovieLens-100K is kept (default: .cache)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="file to write (default: benchmarks/results/subset.json)"
    )
    args = parser.parse_args()
    costs = [row for n in args.sizes for row in cost(n)]
    for row in costs:
        print(f"{row['items']:>11,} items, counted {row['catalog'] or 'all'!s:>7}: {row['median_s']:.4f} s", flush=True)
    data = {"data.train_path": args.split} if args.split else SETTINGS | {"data.path": str(movielens_100k(args.cache))}
    config = Config().with_overrides({**data, "run.progress": False})
    split = load_split(config.data)
    seeds, errors = [], []
    for seed in args.seeds:
        tests, table = one_seed(split, config.with_overrides({"run.seed": seed}), args.catalogs, not errors)
        seeds.append(tests)
        errors += table
        print(f"seed {seed} done", flush=True)
    for row in errors:
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    rows = summary(seeds)
    name = Path(args.split).name if args.split else "MovieLens-100K"
    about = {"name": name, "fingerprint": split.fingerprint(), **split.describe()}
    settings = {key: value for key, value in config.values().items() if key != "data.path"}
    args.results.parent.mkdir(exist_ok=True)
    result = {"machine": machine(), "data": about, "settings": settings, "seeds": args.seeds}
    args.results.write_text(json.dumps(result | {"cost": costs, "error": errors, "quality": rows}, indent=1) + "\n")
    for row in rows:
        spread = "" if row["change_stdev"] is None else f" +- {row['change_stdev']:.2%}"
        print(f"{row['model']:<9}{row['metric']:<11}{row['catalog']:<9}{row['mean']:.4f} {row['change']:+.2%}{spread}")


if __name__ == "__main__":
    main()
