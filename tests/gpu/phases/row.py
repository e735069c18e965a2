"""Does the rows of a phase in this process, and writes what each gives as a line of JSON."""

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from model import predict

from bdkernels.tools.cards import floor_s
from bdkernels.tools.measure import Peaks, Work, device_seconds, quartiles

MOST_S, MOST_CALLS, WARM = 8.0, 51, 3  # of a time: seconds for all, timed calls, calls before them


class Setting(NamedTuple):
    """What a row is given.

    Attributes:
        backend: which one it is about; "" for none.
        rehearse: on the CPU, at small sizes.
        out: the folder with rows.jsonl.
    """

    backend: str
    rehearse: bool
    out: Path

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.rehearse else "cuda")


class NotRun(Exception):
    """Why a row cannot be had here, which is no failure."""


Row = Callable[[Setting], dict[str, Any]]


def do(rows: dict[str, Row], phase: str, names: Iterable[str], setting: Setting) -> None:
    """One after the other. Ends the process where it can do nothing more on the GPU."""
    if setting.rehearse and setting.backend == "triton":
        import interpreter  # noqa: F401  before any kernel
    if setting.backend:
        os.environ["BDKERNELS_BACKEND"] = setting.backend
    for name in names:
        write(setting, phase, name, verdict="begun")
        begin = time.perf_counter()
        try:
            found = {"verdict": "passed"} | rows[name](setting)
        except NotRun as reason:
            found = {"verdict": "not run", "said": str(reason)}
        except torch.OutOfMemoryError as error:
            found = {"verdict": "not run", "said": f"out of memory: {first_line(error)}"}
        except Exception as error:
            traceback.print_exc()
            found = {"verdict": "failed", "said": f"{type(error).__name__}: {first_line(error)}"}
        write(setting, phase, name, **found | {"seconds": round(time.perf_counter() - begin, 2)})
        if torch.cuda.is_initialized():
            try:
                gc.collect()
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError as error:
                sys.exit(f"the GPU is lost to this process: {first_line(error)}")


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])


def write(setting: Setting, phase: str, name: str, **what: Any) -> None:
    line = json.dumps({"phase": phase, "row": name, **what})
    with (setting.out / "rows.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)  # for the log


def ceilings(setting: Setting) -> Peaks | None:
    """What `machine` has measured in this run: fp32 products and copies; None where it has not."""
    found = {}
    for line in (setting.out / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        found |= {key: row[key] for key in ("gflops", "gbs") if key in row and row["row"] in ("fp32 product", "copy")}
    return Peaks(**found) if len(found) == 2 else None


def timed(
    setting: Setting, call: Callable[[], Any], work: Work | None = None, calls: int = 1, model: str = ""
) -> dict[str, Any]:
    """Median and quartiles of the call, in ms, beside its floor and what the model had predicted.

    Args:
        call: what has been checked before.
        work: what it must do at least; None where that says nothing.
        calls: so many in a row are one measurement, for what is queued faster than it can be timed alone.
        model: the row of the cost model, which is of the CUDA kernels; "" for none.
    """
    begin = time.perf_counter()
    for _ in range(1 if setting.rehearse else WARM):
        call()
    times: list[float] = []
    while len(times) < (3 if setting.rehearse else MOST_CALLS):
        times.append(device_seconds(call, calls))
        if len(times) >= 3 and time.perf_counter() - begin > MOST_S:
            break
    t = quartiles(times)
    found: dict[str, Any] = {key.replace("_s", "_ms"): 1e3 * value for key, value in t.items()} | {"calls": len(times)}
    best = ceilings(setting)
    if work is not None and best is not None:
        least = floor_s(work, best)
        found |= {"floor_ms": 1e3 * least, "times_the_floor": t["median_s"] / least}
    ms = predicted(model) if setting.backend == "cuda" else None
    return found if ms is None else found | {"model_ms": ms}


def predicted(name: str) -> float | None:
    """Milliseconds by the cost model (model.md), an H100's; None where it has no such row."""
    return predict().get(name)
