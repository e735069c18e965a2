"""bidistill: train a large and a small recommender that improve each other.

from bidistill import Config, Trainer, read, split

parts = split(read("ratings.csv"))
result = Trainer(Config(), parts).fit()
print(result.metrics["student"]["test"])
"""

from importlib.util import find_spec

for _name in ("pyarrow", "pydantic", "safetensors", "tomlkit", "tqdm"):
    if find_spec(_name) is None:  # bdkernels alone is installed
        raise ImportError(f"bidistill needs {_name}: install it with pip install 'bdkernels[train]'")

from bidistill.catalog_metrics import Catalog, Lists
from bidistill.config import Config
from bidistill.data import Interactions, Split, generate, given_split, read, split
from bidistill.distill import Bidirectional, Distiller, Method, Request, register_method
from bidistill.errors import UserError
from bidistill.evaluation.evaluate import compare, evaluate, per_user
from bidistill.evaluation.intervals import interval
from bidistill.logs import log_to_terminal
from bidistill.metrics import UserRanks
from bidistill.models import MF, Recommender, build_model, register_model
from bidistill.optimizers import register_optimizer, register_scheduler
from bidistill.registry import CATALOG_METRICS, LOSSES, METRICS
from bidistill.training.callbacks import Callback, Run
from bidistill.training.control import matched
from bidistill.training.finished import FinishedRun, open_run
from bidistill.training.trainer import Result, Trainer
from bidistill.tuning.search import Tuned, tune

__all__ = [
    "CATALOG_METRICS",
    "LOSSES",
    "METRICS",
    "MF",
    "Bidirectional",
    "Callback",
    "Catalog",
    "Config",
    "Distiller",
    "FinishedRun",
    "Interactions",
    "Lists",
    "Method",
    "Recommender",
    "Request",
    "Result",
    "Run",
    "Split",
    "Trainer",
    "Tuned",
    "UserError",
    "UserRanks",
    "build_model",
    "compare",
    "evaluate",
    "generate",
    "given_split",
    "interval",
    "log_to_terminal",
    "matched",
    "open_run",
    "per_user",
    "read",
    "register_method",
    "register_model",
    "register_optimizer",
    "register_scheduler",
    "split",
    "tune",
]
