"""An epoch of the trainer at the paper's sizes: 5,219 users, 25,187 items, 130,799 interactions, 50 and 5 factors."""

import os
from importlib.util import find_spec
from typing import Any

from bdkernels.tools.measure import quartiles
from phases.row import NotRun, Setting, predicted

SIZES, TINY = (5_219, 25_187, 130_799), (30, 200, 400)
NEEDS = ("pyarrow", "pydantic", "safetensors", "tomlkit", "tqdm")  # of bidistill, beyond torch and numpy
EPOCHS = 8  # by turns with fresh draws and without


def run(setting: Setting) -> dict[str, Any]:
    """Median of the epochs with fresh draws, once the losses of the first are those of the C++ backend's."""
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise NotRun(
            f"bidistill needs {', '.join(missing)}, which this machine lacks: make gpu-libs can bring them along"
        )
    from bidistill import Config, generate, split

    parts = split(generate(*(TINY if setting.rehearse else SIZES))[0], "leave_one")
    settings = {
        "train.pretrain_epochs": 0, "train.patience": 0, "train.eval_every": 1000, "distill.resample_every": 2,
        "run.progress": False, "teacher.dim": 50, "student.dim": 5, "teacher.optimizer": "sparse_adam",
        "student.optimizer": "sparse_adam", "train.epochs": 2 if setting.rehearse else EPOCHS,
    }  # fmt: skip
    config = Config().with_overrides(settings | ({"train.batch_size": 128} if setting.rehearse else {}))
    mine = epochs(config.with_overrides({"run.device": setting.device.type}), parts)
    os.environ["BDKERNELS_BACKEND"] = "cpu"
    try:
        theirs = epochs(config.with_overrides({"train.epochs": 1}), parts)
    finally:
        os.environ["BDKERNELS_BACKEND"] = setting.backend
    losses = [name for name in theirs[0] if "/loss_" in name]
    assert len(losses) == 4, losses
    for name in losses:
        apart = abs(mine[0][name] - theirs[0][name])
        assert apart <= 1e-3 * abs(theirs[0][name]), (
            f"{name}: {mine[0][name]:.6g}, by the C++ backend {theirs[0][name]:.6g}"
        )
    fresh, steps = ([row["seconds"] for row in mine[first::2]] for first in (0, 1))
    timed = fresh[1:] or fresh  # the first one warms up
    found = {key.replace("_s", "_ms"): 1e3 * value for key, value in quartiles(timed).items()} | {"calls": len(timed)}
    alone = 1e3 * quartiles(steps)["median_s"]
    model = {} if (ms := predicted("epoch")) is None else {"model_ms": ms}
    return found | model | {"steps_ms": alone, "said": f"without fresh draws {alone:.4g}"}


def epochs(config: Any, parts: Any) -> list[dict[str, Any]]:
    """The rows of a run's epochs."""
    from bidistill import Trainer

    trainer = Trainer(config, parts)
    trainer.fit()
    return [row for row in trainer.history if row["phase"] == "joint" and row["epoch"]]
