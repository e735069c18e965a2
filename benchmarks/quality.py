"""Distilled against matched control on several seeds: `python -m benchmarks.quality [SPLIT.npz] [--seeds 0 1 2]`.

Without a file: MovieLens-100K with the settings of the demo. Control: the same pretraining bit for bit, the epochs that the joint
phase really had, the same batches and negatives, no distillation. Each run keeps its best epoch on validation; the numbers are
test.
Writes benchmarks/results/quality.json with every seed, mean and spread.
"""

import argparse
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from bidistill import Config, Split, Trainer, matched
from bidistill.cli.demo import SETTINGS
from bidistill.data import movielens_100k
from bidistill.data.load import load_split

from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "quality.json"
METRICS = ("ndcg@10", "ndcg@50", "recall@50", "mrr")


def one_seed(split: Split, config: Config) -> dict[str, dict[str, dict[str, float]]]:
    """Test metrics of the pretraining, the control and the distilled run, for each model."""
    with TemporaryDirectory() as folder:
        trainer = Trainer(config.with_overrides({"run.out": f"{folder}/run"}), split)
        distilled = trainer.fit()
        alone = matched(trainer).with_overrides({"run.out": None})
        control = Trainer(alone, split, warm_start=f"{folder}/run").fit()
    runs = {"pretraining": distilled.pretrained, "control": control.metrics, "distilled": distilled.metrics}
    return {name: {model: metrics[model]["test"] for model in metrics} for name, metrics in runs.items()}


def summary(seeds: list[dict[str, dict[str, dict[str, float]]]]) -> list[dict]:
    """One row a model, run and metric, and one for the change from the control to the distilled run, paired by seed."""
    rows = []
    for model in ("teacher", "student"):
        for metric in METRICS:
            by_run = {
                name: [seed[name][model][metric] for seed in seeds] for name in ("pretraining", "control", "distilled")
            }
            pairs = zip(by_run["distilled"], by_run["control"], strict=True)
            by_run["distilled / control - 1"] = [after / before - 1 for after, before in pairs]
            for name, values in by_run.items():
                spread = statistics.stdev(values) if len(values) > 1 else None
                mean = statistics.mean(values)
                rows.append(
                    {"model": model, "metric": metric, "run": name, "mean": mean, "stdev": spread, "values": values}
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument(
        "split", nargs="?", help=".npz with arrays train, val, test of (user, item) rows, or a saved split"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache", default=".cache", help="where MovieLens-100K is kept (default: .cache)")
    args = parser.parse_args()
    data = {"data.train_path": args.split} if args.split else SETTINGS | {"data.path": str(movielens_100k(args.cache))}
    config = Config().with_overrides({**data, "run.progress": False})
    split = load_split(config.data)
    results = []
    for seed in args.seeds:
        results.append(one_seed(split, config.with_overrides({"run.seed": seed})))
        print(f"seed {seed} done", flush=True)
    rows = summary(results)
    name = Path(args.split).name if args.split else "MovieLens-100K"
    about = {"name": name, "fingerprint": split.fingerprint(), **split.describe()}
    settings = {key: value for key, value in config.values().items() if key != "data.path"}
    RESULTS.parent.mkdir(exist_ok=True)
    result = {"machine": machine(), "data": about, "settings": settings, "seeds": args.seeds, "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        spread = "" if row["stdev"] is None else f" +- {row['stdev']:.4f}"
        print(f"{row['model']:<9}{row['metric']:<11}{row['run']:<25}{row['mean']:.4f}{spread}")


if __name__ == "__main__":
    main()
