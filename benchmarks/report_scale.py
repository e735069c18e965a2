"""The README's tables of what `make million` and `make scale` measured."""

from typing import Any

from bidistill.metrics import heading

PHASES = {"pretrain_teacher": "teacher alone", "pretrain_student": "student alone", "joint": "both together"}


def million_table(result: dict[str, Any], where: str) -> list[str]:
    """What was planned beside what it took, at each size, and the epochs of the largest."""
    s = result["settings"]
    number = "one" if s["train.epochs"] == 1 else str(s["train.epochs"])
    epochs = f"{number} epoch{'' if number == 'one' else 's'} of each alone and {number} of both"
    lines = [
        f"**The whole job, as planned and as it was** (`make million`; {where}). Teacher {s['teacher.dim']}, student",
        f"{s['student.dim']}, {epochs}, batch {s['train.batch_size']:,}; exact draws over the",
        f"full catalog, each user's pool drawn anew once in {s['distill.resample_every']} epochs, as the steps go; evaluation on",
        f"{s['eval.users']:,} users. Planned: by `bidistill plan` before the run. Each command a process of its own:\n",
        "| users x items, interactions | data made in | planned | took | planned / took | planned peak | peak | disk |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(result["sizes"], key=lambda row: row["users"]):
        plan, train = row["plan"], row["train"]
        cells = [
            f"{row['users']:,} x {row['items']:,}, {row['interactions']:,}",
            f"{row['generate']['seconds']:.0f} s, {row['generate']['peak_gb']:.1f} GB",
            f"{plan['seconds']:,.0f} s",
            f"{train['seconds']:,.0f} s",
            f"{plan['seconds'] / train['seconds']:.2f}",
            f"{plan['peak_gb']:.1f} GB",
            f"{train['peak_gb']:.1f} GB",
            f"{train['disk_gb']:.1f} GB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    shared = [row for row in sorted(result["sizes"], key=lambda row: row["users"]) if "quality" in row]
    if shared:
        metric = heading(shared[0]["quality"]["metric"])
        lines += [
            f"\n{metric} on the test part as a share of that of the model which made the data up:\n",
            f"| users x items | {metric} of that model | teacher | student | popularity |",
            "|---|---|---|---|---|",
        ]
    for row in shared:
        found = row["quality"]
        cells = [f"{found[f'{name}_share']:.1%}" for name in ("teacher", "student", "popularity")]
        lines.append(f"| {row['users']:,} x {row['items']:,} | {found['generator']:.4f} | {' | '.join(cells)} |")
    largest = max(result["sizes"], key=lambda row: row["users"])
    lines += [
        f"\nThe epochs of {largest['users']:,} x {largest['items']:,}:\n",
        "| | steps | interactions a second | resampling | evaluation |",
        "|---|---|---|---|---|",
    ]
    for row in largest["epochs"]:
        if int(row["epoch"]):
            steps = float(row["steps_seconds"])
            resampling = f"{float(row['resample_seconds']):,.0f} s" if "resample_seconds" in row else ""
            cells = [f"{steps:,.0f} s", f"{largest['train_rows'] / steps:,.0f}", resampling]
            lines.append(f"| {PHASES[row['phase']]} | {' | '.join(cells)} | {float(row['evaluate_seconds']):.0f} s |")
    return [*lines, ""]


def scale_table(result: dict[str, Any], where: str) -> list[str]:
    """Steps by the catalog, refill by the cores, traffic by the processes."""
    items = list(dict.fromkeys(row["items"] for row in result["step"]))
    lines = [
        f"**What does not grow with the catalog** (`make scale`; {where}). A training step of one model, batch 1,024, d = 64,",
        "4 negatives and 8 distilled items a row, median ms (quartiles) by the number of items:\n",
        f"| step | {' | '.join(f'{n:,}' for n in items)} | {items[-1]:.0e} : {items[0]:.0e} |",
        "|---|---|" + "---|" * len(items),
    ]
    names = {
        "bdkernels": "`fused_step`, `SparseAdam`",
        "bdkernels_unfused": "`fused_loss`, torch's SparseAdam",
        "eager": "eager autograd, SparseAdam",
    }
    for kind in dict.fromkeys(row["contender"] for row in result["step"]):
        rows = [row for row in result["step"] if row["contender"] == kind]
        cells = [f"{r['median_s'] * 1e3:.2f} ({r['q25_s'] * 1e3:.2f}-{r['q75_s'] * 1e3:.2f})" for r in rows]
        lines.append(f"| {names[kind]} | {' | '.join(cells)} | {rows[-1]['median_s'] / rows[0]['median_s']:.2f} |")
    first = result["refill"][0]
    speeds = [f"{r['scores_a_second'] / 1e6:,.0f} million with {r['threads']} thread(s)" for r in result["refill"]]
    lines.append(
        f"\nDraws for {first['users']} users over {first['items']:,} items, dims {'/'.join(map(str, first['dims']))}: scores a"
        f" second {' and '.join(speeds)}.\n"
    )
    if not result["shards"]:
        return lines
    first = result["shards"][0]
    lines += [
        f"Items on several processes: kB that a process sends in one call, the most of any; {first['users_each']} users each,",
        f"dims {'/'.join(map(str, first['dims']))}, {first['listed']} listed items, {first['draws']} draws. Results equal those",
        "of one process, bit for bit:\n",
        "| processes | items | `rank` | `sample` | the same as on one |",
        "|---|---|---|---|---|",
    ]
    for r in result["shards"]:
        same = "yes" if r["same_as_one"] else "NO"
        sent = f"{r['rank_bytes'] / 1e3:,.0f} | {r['sample_bytes'] / 1e3:,.0f}"
        lines.append(f"| {r['processes']} | {r['items']:,} | {sent} | {same} |")
    return [*lines, ""]
