"""Writes the README's tables and plots from the result files: `python -m benchmarks.report`. Numbers are never typed in."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.bounds import sentences
from benchmarks.plots import plot
from benchmarks.report_scale import million_table, scale_table
from benchmarks.targets import TARGETS, Rows, verdict

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- measured -->\n", "<!-- /measured -->"
TABLES = {  # result file: heading, and what the reader must know
    "sample": (
        "Sampling",
        "32 draws a user and direction. (d) is 64 users, dims 64/16. The floor is the two score products alone, in the tiles that"
        " library GEMM is fastest with; `benchmarks/peers.py` says what each contender is.",
    ),
    "rank": (
        "Counting",
        "product: one threshold a user, against the product alone. search: one thread, C thresholds a user; block: scores that"
        " are there already; fused: the whole of `count_above`.",
    ),
    "topk": ("Top-k", "k = 100, nothing excluded; several chunk sizes of torch.topk, the fastest is the peer."),
    "evaluate": ("Evaluation", "the rank of one held-out item a user; several chunk sizes, the fastest is the peer."),
    "loss": ("Training step", "one model, 4 negatives and 8 distilled items a row; loss, gradients, SparseAdam."),
    "softmax": (
        "Softmax of many negatives",
        "one model, batch 4,096, fused_step with SparseAdam, nothing distilled: softmax of 64 negatives, and BCE of 4 and 64."
        " shared, batch: softmax of 64 negatives of that train.negative_source; these and drawn bce draw in that time.",
    ),
    "epoch": (
        "Epoch",
        "ours: fused steps of sparse_adam; bdkernels adam: the default optimizer, whose steps are eager. published: the faster of"
        " the eager steps plus a resampling of all users' ranks and draws, user by user, or a tenth of one; it is measured"
        " on some users and scaled to all.",
    ),
    "threads": ("Threads", "sampling, each in a process of its own."),
}


def where(machine: dict[str, Any]) -> str:
    """Machine and versions of a result, in a line."""
    return (
        f"{machine['date']}, commit {machine['commit']}, {machine['cpu']}, {machine['threads']} threads, "
        f"backend {machine['backend']} ({machine['isa']}), torch {machine['torch']}"
    )


def targets_table(rows: Rows) -> list[str]:
    """What was asked for beside what is measured."""
    lines = ["| figure | asked | measured | |", "|---|---|---|---|"]
    for target in TARGETS:
        measured, met = verdict(target, rows)
        bound = f"{'at most' if target.at_most else 'at least'} {target.bound:g} {target.unit}"
        lines.append(f"| {target.figure} | {bound} | {measured} | {met} |")
    return [*lines, ""]


def workload_table(heading: str, about: str, rows: list[dict[str, Any]]) -> list[str]:
    """Every case and contender of a workload, in the order of the result file."""
    lines = [f"**{heading}**: {about}\n"]
    lines.append(
        "| case | users x items, dims | contender | median s (quartiles) | ns a score | GFLOP/s | x floor | extra MB |"
    )
    lines.append("|---|---|---|---|---|---|---|---|")
    for r in rows:
        size = f"{r['users']:,} x {r['items']:,}, {'/'.join(map(str, r['dims']))}"
        start = f"| {r['case'].split('/')[1]} | {size} | {r['contender'].replace('_', ' ')} |"
        if "absent" in r:
            lines.append(f"{start} {r['absent']} | | | | |")
            continue
        time = f"{r['median_s']:.4f} ({r['q25_s']:.4f}-{r['q75_s']:.4f})"
        speed = f"{r['gflops']:.0f} ({r['percent_of_peak_gflops']:.0f} %)" if r.get("gflops") else ""
        rate = f"{r['ns_a_score']:.2f}" if "ns_a_score" in r else ""
        floor = f"{r['times_the_floor']:.2f}" if r["times_the_floor"] else ""
        memory = "" if r["peak_extra_mb"] is None else f"{r['peak_extra_mb']:.0f}"
        lines.append(f"{start} {time} | {rate} | {speed} | {floor} | {memory} |")
    return [*lines, *notes(rows), ""]


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """What the rows say besides numbers."""
    lines = [f"{r['case']}, {r['contender']}: {r['note']}." for r in rows if r.get("note")]
    lines += [
        f"{r['case']}, {r['contender']}: the first call, which compiles, took {r['first_s']:.0f} s."
        for r in rows
        if r["contender"] == "dense_compiled" and "first_s" in r
    ]
    lines += [
        f"{r['case']}: data {r['data']}, {r['interactions']:,} interactions, resampling measured on {r['refreshed_users']} users."
        for r in rows[:1]
        if "data" in r
    ]
    return ["", "<br>\n".join(lines)] if lines else []


def speed_section(results: dict[str, list[dict[str, Any]]], folder: Path, readme: Path) -> list[str]:
    """Targets, plots, and the tables in a fold."""
    everything = [row for rows in results.values() for row in rows]
    rows: Rows = {(row["case"], row["contender"]): row for row in everything if "absent" not in row}
    first = everything[0]
    peaks = f"{first['peak_gflops']:.0f} GFLOP/s (torch.mm; the percentages below) and {first['peak_gbs']:.0f} GB/s"
    runs = sorted({where(row) for row in everything if row["case"] != "rank/search"})
    lines = [
        f"**Speed** (`make bench-full`; {'; '.join(runs)}): contenders take turns in one process, medians; peak memory of",
        f"each in a process of its own. Peaks measured with torch: {peaks}.\n",
        *targets_table(rows),
    ]
    if bounds := sentences(rows):
        lines += ["What bounds those that are missed, by the same rows:\n", *bounds, ""]
    relative = os.path.relpath(folder, readme.parent)
    lines += [f"![{name.split('.')[0]} against items]({relative}/{name})" for name in plot(rows, folder)]
    lines.append("\n<details><summary>Every contender</summary>\n")
    for name, found in results.items():
        lines += workload_table(*TABLES[name], found)
    return [*lines, "</details>\n"]


def quality_table(result: dict[str, Any]) -> list[str]:
    """Distilled against control."""
    data, seeds = result["data"], result["seeds"]
    size = f"{data['users']:,} users x {data['items']:,} items, {data['test']:,} test items"
    lines = [
        f"**Quality** (`make quality`; {where(result['machine'])}): {data['name']}, {size},",
        f"{len(seeds)} seeds on one split, mean and standard deviation. Control: the same pretraining, the same number of",
        "epochs, no distillation. Settings as in the demo, chosen on validation; test numbers could be seen meanwhile, so take",
        "the gain as a description of this data set, not as a forecast. Three seeds of one split say little about the teacher.\n",
        "| model | metric (test) | pretraining | control | distilled | change against control |",
        "|---|---|---|---|---|---|",
    ]
    rows = {(r["model"], r["metric"], r["run"]): r for r in result["rows"]}
    for model, metric in dict.fromkeys((r["model"], r["metric"]) for r in result["rows"]):
        cells = []
        for run in ("pretraining", "control", "distilled"):
            r = rows[model, metric, run]
            cells.append(f"{r['mean']:.4f} +- {r['stdev']:.4f}")
        change = rows[model, metric, "distilled / control - 1"]
        cells.append(f"{change['mean']:+.1%} +- {change['stdev']:.1%}")
        lines.append(f"| {model} | {metric} | {' | '.join(cells)} |")
    return [*lines, ""]


def subset_table(result: dict[str, Any]) -> list[str]:
    """Ranks from a subset of the catalog against exact ones."""
    data, cost, seeds = result["data"], result["cost"], len(result["seeds"])
    size = f"{data['users']:,} users x {data['items']:,} items"
    lines = [
        f"**Ranks from a subset** (`make subset`; {where(result['machine'])}). Time of `sample`, 64 users, teacher 64 and",
        f"student 16, 32 draws a direction, medians of {cost[0]['repeats']}:\n",
        "| items | exact | ranks from | takes |",
        "|---|---|---|---|",
    ]
    for exact, some in zip(cost[::2], cost[1::2], strict=True):
        times = [f"{row['median_s'] * 1e3:,.0f} ms" for row in (exact, some)]
        lines.append(f"| {exact['items']:,} | {times[0]} | {some['catalog']:,} | {times[1]} |")
    lines += [
        f"\n{data['name']}, {size}, models after their pretraining; errors as shares of the catalog, total variation (TV) of",
        "the draws' distributions against the exact ones, of one subset and averaged over 32; then the change of test metrics",
        f"against exact draws, {seeds} seeds, paired, mean and standard deviation, beside that of the control, which does not",
        "distil at all:\n",
        "| items | mean error | 95 % are below | bound (delta 5 %) | TV to student | averaged | TV to teacher | averaged |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in result["error"]:
        tv = (r[f"tv_{name}{of}"] for name in ("to_student", "to_teacher") for of in ("", "_averaged"))
        shares = (f"{r[name]:.2%}" for name in ("rank_error_mean", "rank_error_p95", "bound"))
        kind = "of every popularity" if r.get("strata") else "any"
        lines.append(f"| {r['catalog']:,}, {kind} | {' | '.join(shares)} | {' | '.join(f'{v:.3f}' for v in tv)} |")
    others = [name for name in dict.fromkeys(r["catalog"] for r in result["quality"]) if name != "0"]
    named = [name if name == "control" else f"{name} of every popularity" for name in others]
    lines += [f"\n| model | metric (test) | exact | {' | '.join(named)} |", "|---|---|---|" + "---|" * len(others)]
    rows = {(r["model"], r["metric"], r["catalog"]): r for r in result["quality"]}
    for model, metric in dict.fromkeys((r["model"], r["metric"]) for r in result["quality"]):
        cells = [f"{rows[model, metric, '0']['mean']:.4f}"]
        cells += [
            f"{r['change']:+.1%} +- {r['change_stdev']:.1%}" for r in (rows[model, metric, name] for name in others)
        ]
        lines.append(f"| {model} | {metric} | {' | '.join(cells)} |")
    return [*lines, ""]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the result files"
    )
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file with the markers")
    args = parser.parse_args(argv)
    found = {path.stem: json.loads(path.read_text()) for path in args.results.glob("*.json")}
    speed = {name: found[name]["rows"] for name in TABLES if name in found}
    lines = speed_section(speed, args.results, args.readme) if speed else []
    if "quality" in found:
        lines += quality_table(found["quality"])
    if "subset" in found:
        lines += subset_table(found["subset"])
    for name, table in (("million", million_table), ("scale", scale_table)):
        if name in found:
            lines += table(found[name], where(found[name]["machine"]))
    before, rest = args.readme.read_text().split(START)
    args.readme.write_text(before + START + "\n".join(lines) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
