"""The rows as text of at most 9,000 characters: what a call of a machine without a screen gives back is short."""

from typing import Any

MOST = 9_000  # with what is printed before it, less than 10,000
SAID = (250, 160, 100, 60, 30, 0)  # characters of what a row said, the most that leaves it short enough
REHEARSAL = "A rehearsal without a GPU: nothing here says anything about one, and the times mean nothing."


def table(rows: list[dict[str, Any]], rehearse: bool = False) -> str:
    """Every row in order, under its phase; failures are told again at the end."""
    texts = (_text(rows, rehearse, said) for said in SAID)
    found = next((text for text in texts if len(text) <= MOST), _text(rows, rehearse, 0))
    return found if len(found) <= MOST else found[: MOST - 40] + "\n... all rows are in rows.jsonl\n"


def _text(rows: list[dict[str, Any]], rehearse: bool, said: int) -> str:
    verdicts = [row["verdict"] for row in rows]
    counts = ", ".join(f"{verdicts.count(each)} {each}" for each in ("passed", "failed", "not run"))
    lines = [REHEARSAL] if rehearse else []
    lines.append(
        "times in ms: median (quartiles, calls); floor by the ceilings measured here; x: median to floor; model: predicted"
    )
    phase = None
    for row in rows:
        if row["phase"] != phase:
            phase = row["phase"]
            lines.append(phase)
        lines.append(f"  {_line(row, said)}".rstrip())
    failed = [f"{row['phase']}, {row['row']}" for row in rows if row["verdict"] == "failed"]
    lines.append(counts + (f"; failed: {'; '.join(failed)}" if failed else ""))
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any], said: int) -> str:
    name, text = f"{row['row']:<28}", " ".join(str(row.get("said", "")).split())[:said]
    if row["verdict"] != "passed":
        return f"{name} {'FAILED' if row['verdict'] == 'failed' else 'not run'}: {text}"
    if "median_ms" not in row:
        return f"{name} passed {text}"
    spread = f"({row['q25_ms']:.4g}-{row['q75_ms']:.4g}, {row['calls']})"
    floor = f"{row['floor_ms']:.3g}" if "floor_ms" in row else "-"
    ratio = f"{row['times_the_floor']:.3g}" if "times_the_floor" in row else "-"
    model = f"{row['model_ms']:.3g}" if "model_ms" in row else "-"
    return f"{name} {row['median_ms']:>9.4g} {spread:<24} floor {floor:<6} x {ratio:<6} model {model:<6} {text}"
