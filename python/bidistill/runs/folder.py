"""The folder of a run: what lies where, and who may write or continue it."""

from __future__ import annotations

import fnmatch
import os
import platform
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from bidistill.config import Config
from bidistill.data import Split
from bidistill.distributed.partition import Partition
from bidistill.distributed.processes import Processes, launch, restarted
from bidistill.errors import UserError
from bidistill.eval_options import COMPARED
from bidistill.files.access import present, replacing, unwritable
from bidistill.files.locks import lock
from bidistill.files.records import checked, read_record, write_record
from bidistill.models import Recommender
from bidistill.models.kinds import config_of
from bidistill.runs.checkpoint import (
    load_into,
    model_config,
    model_notes,
    model_seal,
    read_state,
    read_tensors,
    save_checkpoint,
    save_model,
    stored_tensors,
)
from bidistill.runs.growth import Growth
from bidistill.runs.records import Checkpoint, Finished, Listing, Metrics, State

LISTING, LOCK = "files.json", "run.lock"
PRETRAINED = ("pretrained/teacher.safetensors", "pretrained/student.safetensors")
MODELS = ("teacher.safetensors", "student.safetensors")
SHARDS = tuple(f"checkpoint/shards-{x}/{name}" for x in "ab" for name in ("shard-*.safetensors", ".metadata"))
NAMES = (  # what a run writes; the first that is there tells that a run is
    "config.toml",
    "split.npz",
    "metrics.csv",
    "metrics.json",
    *MODELS,
    *PRETRAINED,
    "report.html",
    "checkpoint/state.json",
    "checkpoint/tensors-a.safetensors",
    "checkpoint/tensors-b.safetensors",
    *SHARDS,
)
FOLDERS = ("checkpoint/shards-a", "checkpoint/shards-b", "checkpoint", "pretrained", "tensorboard")


class RunFolder:
    """config.toml, split.npz, metrics.csv and checkpoint/ while it runs; pretrained/*.safetensors after the pretraining;
    teacher.safetensors, student.safetensors (their best states) and metrics.json at the end. files.json lists what this program
    writes there, run.lock is there while a process works in it.

    partition: of the run. Where it lies on several processes, all call the methods, and the first one writes what is no shard.
    """

    def __init__(self, path: str | Path, partition: Partition | None = None) -> None:
        self.path, self.processes = Path(path), Processes() if partition is None else partition.processes
        self._lock: BinaryIO | None = None
        self._depth = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no other process works in the folder, which has to be there.

        Raises:
            UserError: another one does; it says which.
        """
        with self.processes.together("lock the run folder"):
            if self.processes.first and not self._depth:
                self._lock = _locked(self.path)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth and self._lock is not None:
                with suppress(OSError):
                    if _same(self._lock, self.path / LOCK):
                        (self.path / LOCK).unlink()
                self._lock.close()
                self._lock = None

    def require(self) -> None:
        """Raise UserError where the folder is not there, or no more the one that this process holds."""
        if not present(self.path) or (self._lock is not None and not _same(self._lock, self.path / LOCK)):
            raise UserError(
                f"the run folder {self.path} was deleted or replaced while the run was going on, so nothing more is saved"
                " there: start the run again"
            )

    def make(self) -> None:
        """Make the folder, on the first process."""
        with self.processes.together("begin the run"):
            if self.processes.first:
                try:
                    self.path.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise UserError(
                        f"run.out: cannot write to {self.path}: {error.strerror}; choose another folder"
                    ) from error

    def check(self, overwrite: bool) -> None:
        """Raise UserError where a new run would take the place of one (unless overwrite) or of files of others."""
        listing = self._listing()
        if listing is not None and not overwrite:
            raise UserError(
                f"run.out: {self.path} holds a run already: resume it, overwrite it (--overwrite), or choose another folder"
            )
        own = set(listing.files) if listing is not None else set()
        for folder in (self.path / name for name in FOLDERS):
            if folder.is_symlink() or (present(folder) and not folder.is_dir()):
                raise UserError(f"run.out: {folder} is a link or no folder: remove it, or choose another folder")
        for name in NAMES:
            if name not in own and (found := sorted(self.path.glob(name))):
                raise UserError(
                    f"run.out: {found[0]} is there, and {self.path / LISTING} does not say that bidistill wrote it:"
                    " move it, or choose another folder"
                )

    def create(self, config: Config, split: Split, overwrite: bool) -> None:
        """Begin a new run here. Only files that this program wrote are removed.

        Raises:
            UserError: there is a run (unless overwrite), a file of others is in the way, or nothing can be written.
        """
        with self.processes.together("begin the run"):
            if self.processes.first:
                self.check(overwrite)
                listing = self._listing()
                try:
                    self._clear(listing.files if listing is not None else [])
                except OSError as error:
                    raise unwritable(self.path, error) from error
                write_record(self.path / LISTING, Listing(files=list(NAMES), launch=launch()), parents=False)
                split.save(self.path / "split.npz")
                config.to_toml(self.path / "config.toml")

    def _clear(self, names: list[str]) -> None:
        """Remove listed files, and folders that are empty then."""
        for name in names:
            place = Path(name)
            if place.is_absolute() or ".." in place.parts:
                continue
            for file in self.path.glob(name):
                if not file.parent.is_symlink():
                    file.unlink(missing_ok=True)
        for folder in FOLDERS:
            with suppress(OSError):  # not there, or others have something in it
                (self.path / folder).rmdir()

    def _listing(self) -> Listing | None:
        return read_record(self.path / LISTING, Listing) if present(self.path / LISTING) else None

    def claim(self, name: str) -> None:
        """Put a file on the list of what this program writes here. Raises UserError where one of others is in its place."""
        listing = self._listing() or Listing(files=[], launch="")
        if any(fnmatch.fnmatch(name, each) for each in listing.files):
            return
        if present(self.path / name):
            raise UserError(
                f"{self.path / name} is there, and {self.path / LISTING} does not say that bidistill wrote it: move it"
            )
        self.record(name, listing)

    def record(self, name: str, listing: Listing | None = None) -> None:
        """Put a file that this program has just made, under a name that no other file has, on the list."""
        listing = listing or self._listing() or Listing(files=[], launch="")
        write_record(self.path / LISTING, listing.model_copy(update={"files": [*listing.files, name]}), parents=False)

    @contextmanager
    def writing(self, name: str, *, durable: bool = True) -> Iterator[Path]:
        """As `replacing`, for a file in this folder, which has to be there."""
        self.require()
        with replacing(self.path / name, parents=False, durable=durable) as temporary:
            yield temporary

    def restarted(self) -> bool:
        """Whether this torchrun began the run here, by processes that have failed since."""
        if not any(self.processes.agree("begin", int(restarted()))):  # torchrun tells those of the failed one's machine
            return False
        begun = False
        with self.processes.together("look for the run"):
            if self.processes.first and launch():
                listing = self._listing()
                begun = listing is not None and listing.launch == launch()
        return bool(self.processes.agree("look for the run", int(begun))[0])

    def has_checkpoint(self) -> bool:
        """Whether there is one to go on from."""
        return bool(
            self.processes.agree("look for a checkpoint", int(present(self.path / "checkpoint" / "state.json")))[0]
        )

    def split(self) -> Split:
        """What the run trains on."""
        return Split.load(self.path / "split.npz")

    def settings(self) -> Config:
        """Those of the run, as its checkpoint has them. Raises UserError where config.toml was changed since."""
        return self._settings(self.state())

    def _settings(self, state: State) -> Config:
        return recorded_settings(self.path, state.config, self.path / "checkpoint" / "state.json")

    def state(self) -> State:
        """What the checkpoint says. Raises UserError where it is missing, damaged or contradicts itself."""
        return self._state(read_state(self.path / "checkpoint"))

    def _state(self, record: Checkpoint) -> State:
        path = self.path / "checkpoint" / "state.json"
        state = checked(path, State, record.state, Checkpoint.REMEDY)
        last = state.history[-1] if state.history else {}
        if (last.get("phase"), last.get("epoch")) != (state.progress.phase, state.progress.epoch):
            raise UserError(f"{path} contradicts itself (its progress is not that of its history): {Checkpoint.REMEDY}")
        return state

    def write_config(self, config: Config) -> None:
        """Write the settings: into the checkpoint, which is what counts, then into config.toml."""
        with self.processes.together("write the settings"):
            if self.processes.first:
                self.require()
                if present(path := self.path / "checkpoint" / "state.json"):
                    record = read_record(path, Checkpoint)
                    record.state["config"] = config.values()
                    write_record(path, record, parents=False)
                config.to_toml(self.path / "config.toml")

    def save(self, config: Config, split: str, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write the checkpoint. `split` is the fingerprint."""
        files: dict[str, str] = {}
        with self.processes.together("save"):
            if self.processes.first:
                self.require()
                files = {
                    name: model_seal(self.path / name) for name in PRETRAINED if Path(name).stem in state["pretrained"]
                }
        notes = {"split": split, "config": config.values(), "versions": versions(), "pretrained_files": files}
        save_checkpoint(self.path / "checkpoint", tensors, notes | state, self.processes)

    def open(self, config: Config | None, split: Split | None, grow: bool = False) -> tuple[Config, Split, State]:
        """What a run needs to go on, besides its tensors: settings (with the allowed changes), split and state.

        With `grow` the split may be another than the state's.
        """
        state = self.state()
        saved = self._settings(state)
        config = saved if config is None else config
        self._check_config(saved, config)
        split = self.split() if split is None else split
        if not grow:
            if split.fingerprint() != state.split:
                raise UserError(
                    f"{self.path} was trained on another split ({state.split}, now {split.fingerprint()}):"
                    " give the same data and split settings, let the run grow if rows were added (--grow),"
                    " or start a new run"
                )
            for name, seal in state.pretrained_files.items():
                self._check_seal(name, seal)
        return config.with_overrides({"run.out": str(self.path)}), split, state

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the checkpoint: this process's rows."""
        return read_tensors(self.path / "checkpoint", read_state(self.path / "checkpoint"), self.processes)

    def _check_seal(self, name: str, seal: str | None) -> None:
        """Raise UserError unless the model file is whole and the one with this seal."""
        if model_seal(self.path / name) != seal:
            raise UserError(
                f"{self.path / name} is whole, but not the file that the run wrote there: restore it from a copy, or train"
                " the run again"
            )

    def save_pretrained(self, name: str, model: Recommender, split: str) -> None:
        """Keep a model as its pretraining left it."""
        with self.processes.together("save"):
            if self.processes.first:
                self.require()
        save_model(self.path / "pretrained" / f"{name}.safetensors", model, processes=self.processes, split=split)

    def grow_pretrained(self, name: str, model: Recommender, growth: Growth, split: str) -> None:
        """Put a pretraining that this folder keeps into a fresh model of grown data, and keep that instead."""
        path = self.path / "pretrained" / f"{name}.safetensors"
        if model_notes(path)["split"] == split:  # it has grown already, before a crash
            load_into(path, model, self.processes)
            return
        self._check_seal(
            f"pretrained/{name}.safetensors", self.state().pretrained_files.get(f"pretrained/{name}.safetensors")
        )
        fresh, old = model.state_dict(), stored_tensors(path)
        kinds = growth.kinds(old, model)
        model.load_state_dict(
            {key: growth.rows(kinds[key], value, fresh[key]) if key in kinds else value for key, value in old.items()}
        )
        self.save_pretrained(name, model, split)

    def load_pretrained(self, name: str, model: Recommender, split: str) -> None:
        """Put a pretraining that this folder keeps into a model of the same kind and sizes."""
        path = self.path / "pretrained" / f"{name}.safetensors"
        saved = model_config(path)
        if saved != (wanted := config_of(model)):
            raise UserError(f"{path} is another model ({saved}, wanted {wanted}): use the same {name} settings")
        if model_notes(path)["split"] != split:
            raise UserError(f"{path} was trained on another split: give the same data and split settings")
        done = self.path / "metrics.json"
        seals = read_record(done, Finished).files if present(done) else self.state().pretrained_files
        self._check_seal(f"pretrained/{name}.safetensors", seals.get(f"pretrained/{name}.safetensors"))
        load_into(path, model, self.processes)

    def unfinish(self) -> None:
        """Take back that the run is finished, before what belongs to its metrics.json is changed."""
        with self.processes.together("go on"):
            if self.processes.first:
                self.require()
                (self.path / "metrics.json").unlink(missing_ok=True)

    def finish(
        self,
        config: Config,
        models: Mapping[str, Recommender],
        split: str,
        metrics: Metrics,
        pretrained: Metrics,
        baselines: Metrics,
        history: list[dict[str, Any]],
        stopped: str,
    ) -> None:
        """Write the models, then metrics.json, which says what the finished run is."""
        self.unfinish()
        files = {}
        for name, model in models.items():
            path = self.path / f"{name}.safetensors"
            files[path.name] = save_model(path, model, processes=self.processes, parents=False, split=split)
        with self.processes.together("write the metrics"):
            if self.processes.first:
                files |= {name: model_seal(self.path / name) for name in PRETRAINED}
                self.require()
                write_record(
                    self.path / "metrics.json",
                    Finished(
                        metrics=metrics,
                        pretrained=pretrained,
                        baselines=baselines,
                        split=split,
                        versions=versions(),
                        config=config.values(),
                        history=history,
                        files=files,
                        stopped=stopped,
                    ),
                    parents=False,
                )

    def _check_config(self, saved: Config, config: Config) -> None:
        """Raise UserError where the settings differ in more than a resumed run may change."""
        for name in saved.differences(config):
            if not _free(name) and not (name == "train.epochs" and config.train.epochs > saved.train.epochs):
                raise UserError(
                    f"{self.path} was trained with {name} = {saved[name]!r}, not {config[name]!r}:"
                    " resume it with the old value, or start a new run"
                )


def versions() -> dict[str, str]:
    """Versions of what the numbers of a run depend on."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("bdkernels")
    except PackageNotFoundError:
        own = "not installed"
    return {"bdkernels": own, "torch": torch.__version__, "python": platform.python_version()}


def recorded_settings(folder: Path, values: dict[str, Any], source: Path) -> Config:
    """The settings that a record holds. Raises UserError where config.toml, if it is there, was changed in one that counts."""
    try:
        config = Config().with_overrides(values)
    except UserError as error:
        raise UserError(f"{source} is damaged or of another version ({error}): train the run again") from error
    path = folder / "config.toml"
    if present(path):
        for name in config.differences(shown := Config.from_toml(path)):
            if not _free(name) and name != "train.epochs":
                raise UserError(
                    f"{path} says {name} = {shown[name]!r}, but the run was trained with {config[name]!r}: change it back,"
                    " or delete the file"
                )
    return config


def _free(name: str) -> bool:
    """Whether a resumed run may change the setting."""
    return name.startswith(("data.", "run.", *COMPARED)) and name != "run.seed"


def _locked(folder: Path) -> BinaryIO:
    """The lock file of a folder, locked, with words on who holds it."""
    path = folder / LOCK
    while True:
        with ExitStack() as stack:
            try:
                file = stack.enter_context(os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b"))
            except OSError as error:
                raise unwritable(path, error) from error
            if not lock(file):
                holder = file.read().decode("utf-8", "replace").strip() or "another process"
                raise UserError(f"{folder} is in use by {holder}: wait until it ends, or choose another folder")
            if not _same(file, path):  # its holder has just ended, and removed it
                continue
            file.truncate()
            file.write(
                f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode()
            )
            file.flush()
            stack.pop_all()
            return file


def _same(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is the one that has this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
