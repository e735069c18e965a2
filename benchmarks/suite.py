"""Runs the cases of a suite (`cases.py`): `python -m pytest benchmarks/suite.py --suite bench|full|gpu [-k sample]`.

Writes RESULTS/<workload>.json: {"rows": [...]}, a row a case and contender, each with the machine, commit and peaks that it was
measured with. A case that runs replaces its old rows and no others.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from bdkernels.tools.measure import Peaks, quartiles, rates
from benchmarks.case import Case, Timing
from benchmarks.cases import FULL, GPU, SUITES, build
from benchmarks.child import Child

ORDER = [*FULL, *(name for name in GPU if name not in FULL)]


def test_case(name: str, benchmark: Any, where: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """Check one case, time it, weigh it, write it down."""
    option = request.config.getoption
    tiny = option("suite") == "tiny"
    case = build(name, tiny=tiny, data=option("data") or None)
    if option("suite") == "bench":
        case.leave_out_slow()
    _, repeats, limit_s = SUITES[option("suite")]
    timings = case.measure(benchmark, repeats, limit_s)
    notes = {contender: getattr(call, "note", None) for contender, call in case.contenders.items()}
    contenders = list(case.contenders)
    case.release()  # before others are weighed, who need the memory
    memory: dict[str, float | None] = {}
    for contender in contenders[: 1 if tiny else None] if case.memory else ():
        try:
            with Child(name, contender, tiny=tiny) as child:
                memory[contender] = child.extra_mb
        except RuntimeError as error:  # out of memory: the times are good all the same
            if contender == contenders[0]:
                raise
            notes[contender] = f"not weighed: {error}"
    rows = [
        row(name, case, contender, timings, notes.get(contender), memory.get(contender), where) for contender in timings
    ]
    rows += [{"case": name, **case.sizes, "contender": who, "absent": why, **where} for who, why in case.absent.items()]
    save(option("results") / f"{name.split('/')[0]}.json", name, rows)
    benchmark.extra_info["rows"] = rows
    print("", *map(line, rows), sep="\n")


def row(
    name: str,
    case: Case,
    contender: str,
    timings: dict[str, Timing],
    note: str | None,
    memory: float | None,
    where: dict[str, Any],
) -> dict[str, Any]:
    """What is known of one contender in one case."""
    timing, times = timings[contender], quartiles(timings[contender].times)
    best = Peaks(where["peak_gflops"], where["peak_gbs"])
    speed = rates(case.work, times["median_s"], best) if case.work else {}
    if case.threads:  # the peaks are all threads'
        speed = {key: value for key, value in speed.items() if "peak" not in key}
    floor = quartiles(timings["floor"].times)["median_s"] if "floor" in timings else None
    return {
        "case": name,
        **case.sizes,
        "contender": contender,
        **times,
        "repeats": len(timing.times),
        "first_s": timing.first_s,
        **speed,
        "times_the_floor": floor and times["median_s"] / floor,
        "peak_extra_mb": memory,
        "note": note,
        **where,
        "threads": case.threads or where["threads"],
    }


def save(path: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """The rows in the place of those that the case had."""
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = sorted([each for each in old if each["case"] != name] + rows, key=lambda each: ORDER.index(each["case"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def line(row: dict[str, Any]) -> str:
    """A row as the console shows it."""
    who = f"{row['case']:<18}{row['contender']:<28}"
    if "absent" in row:
        return who + row["absent"]
    floor = f"{row['times_the_floor']:.2f} x floor" if row["times_the_floor"] else ""
    memory = "" if row["peak_extra_mb"] is None else f"{row['peak_extra_mb']:.0f} MB"
    spread = f"({row['q25_s']:.4f}-{row['q75_s']:.4f}, {row['repeats']})"
    rate = f"{row['ns_a_score']:.2f} ns a score" if "ns_a_score" in row else ""
    return f"{who}{row['median_s']:>9.4f} s {spread:<26}{rate:>20}{floor:>16}{memory:>10}"
