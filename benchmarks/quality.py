"""Distilled against matched control on several seeds: `python -m benchmarks.quality SPLIT.npz [--seeds 0 1 2]`.

Control: the same warm-up bit for bit, as many more epochs, the same batches and negatives, no distillation. Each run keeps its
best epoch on validation; the numbers are test, once. Writes benchmarks/results/quality.json with every seed, mean and spread.
"""

import argparse
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from bidistill import Config, Trainer
from bidistill.config import DataConfig
from bidistill.load import load_split

from benchmarks.sample import machine

RESULTS = Path(__file__).parent / "results" / "quality.json"


def one_seed(split, config: Config) -> dict[str, dict[str, dict[str, float]]]:
    """Test metrics of the warm-up, the control and the distilled run, for each model."""
    with TemporaryDirectory() as folder:
        distilled = Trainer(config.with_overrides({"run.out": f"{folder}/run"}), split).fit()
        control = Trainer(config.with_overrides({"distill.method": "none"}), split, warm_start=f"{folder}/run").fit()
    runs = {"warm-up": distilled.warmup, "control": control.metrics, "distilled": distilled.metrics}
    return {name: {model: metrics[model]["test"] for model in metrics} for name, metrics in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("split", help=".npz with arrays train, val, test of (user, item) rows, or a split of bidistill")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", help="TOML with settings other than the defaults")
    args = parser.parse_args()
    config = Config.from_toml(args.config) if args.config else Config()
    config = config.with_overrides({"run.progress": False})
    split = load_split(DataConfig(train_path=args.split))
    seeds = {seed: one_seed(split, config.with_overrides({"run.seed": seed})) for seed in args.seeds}
    rows = []
    for model in ("teacher", "student"):
        for name in ("warm-up", "control", "distilled"):
            for metric in (config.train.monitor, "hr@10", "mrr"):
                values = [seeds[seed][name][model][metric] for seed in args.seeds]
                spread = statistics.stdev(values) if len(values) > 1 else None
                rows.append({"model": model, "run": name, "metric": metric, "mean": statistics.mean(values),
                             "stdev": spread, "values": values})  # fmt: skip
    data = {"name": Path(args.split).name, "fingerprint": split.fingerprint(), **split.describe()}
    RESULTS.parent.mkdir(exist_ok=True)
    result = {"machine": machine(), "data": data, "settings": config.values(), "seeds": args.seeds, "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        spread = "" if row["stdev"] is None else f" +- {row['stdev']:.4f}"
        print(f"{row['model']:<9}{row['run']:<11}{row['metric']:<9}{row['mean']:.4f}{spread}")


if __name__ == "__main__":
    main()
