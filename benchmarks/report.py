"""Writes the README's tables from benchmarks/results/*.json: `python -m benchmarks.report`. Numbers are never typed in."""

import argparse
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- measured -->\n", "<!-- /measured -->"


def where(machine: dict) -> str:
    return (
        f"{machine['date']}, commit {machine['commit']}, {machine['cpu']}, {machine['threads']} threads, "
        f"backend {machine['backend']} ({machine['isa']}), torch {machine['torch']}"
    )


def sample_table(result: dict) -> list[str]:
    """Time and memory of the sampler beside its peers."""
    lines = [
        f"**Sampling** (`make bench`; {where(result['machine'])}): 32 draws a user and direction, interleaved in one process,",
        "peak memory of each in a process of its own.\n",
        "| users x items, dims | contender | median s (quartiles) | x floor | extra MB |",
        "|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        size = f"{r['users']:,} x {r['items']:,}, {r['dims'][0]}/{r['dims'][1]}"
        time = f"{r['median_s']:.3f} ({r['q25_s']:.3f}-{r['q75_s']:.3f})"
        name = r["contender"].replace("_", " ")
        lines.append(f"| {size} | {name} | {time} | {r['times_the_floor']:.1f} | {r['peak_extra_mb']:.0f} |")
    lines.append(
        "\nThe floor is the two score products alone, in tiles that stay in cache; `benchmarks/peers.py` says what each is.\n"
    )
    return lines


def quality_table(result: dict) -> list[str]:
    """Distilled against control."""
    data, seeds = result["data"], result["seeds"]
    size = f"{data['users']:,} users x {data['items']:,} items, {data['test']:,} test items"
    lines = [
        f"**Quality** (`make quality`; {where(result['machine'])}): {data['name']}, {size},",
        f"{len(seeds)} seeds on one split, mean and standard deviation. Control: the same warm-up, as many more epochs,",
        "no distillation. Settings as in the demo, chosen on validation; test numbers could be seen meanwhile, so take the gain",
        "as a description of this data set, not as a forecast. Three seeds of one split say little about the teacher.\n",
        "| model | metric (test) | warm-up | control | distilled | change against control |",
        "|---|---|---|---|---|---|",
    ]
    rows = {(r["model"], r["metric"], r["run"]): r for r in result["rows"]}
    for model, metric in dict.fromkeys((r["model"], r["metric"]) for r in result["rows"]):
        cells = []
        for run in ("warm-up", "control", "distilled"):
            r = rows[model, metric, run]
            cells.append(f"{r['mean']:.4f} +- {r['stdev']:.4f}")
        change = rows[model, metric, "distilled / control - 1"]
        cells.append(f"{change['mean']:+.1%} +- {change['stdev']:.1%}")
        lines.append(f"| {model} | {metric} | {' | '.join(cells)} |")
    return [*lines, ""]


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__).parse_args()
    lines = []
    for name, table in (("sample", sample_table), ("quality", quality_table)):
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        if path.exists():
            lines += table(json.loads(path.read_text()))
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(START)
    readme.write_text(before + START + "\n".join(lines) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
