"""Names that settings may give: of models, distillation methods, losses, metrics, optimizers and learning-rate schedules.

A name comes from a module of this package, from an installed package that has an entry point of the group "bidistill.models",
"bidistill.methods" and so on, or from the program that calls `register`. Settings are checked against what is registered when
they are made, so register first.
"""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, NamedTuple, TypeVar

from bidistill.errors import UserError

T = TypeVar("T")


class Entry(NamedTuple, Generic[T]):
    """What a name stands for.

    Attributes:
        value: the model, loss and so on.
        settings: a dataclass of its own settings, all of which have defaults; None: its arguments are not checked.
    """

    value: T
    settings: type | None


class Registry(Generic[T]):
    """What each name stands for; iterating gives the names.

    Args:
        what: the noun of error messages, such as "model".
        group: the last part of the entry points' group, such as "models".
        home: the module or package whose import registers the names of this package.
    """

    def __init__(self, what: str, group: str, home: str) -> None:
        self.what, self.group, self.home = what, f"bidistill.{group}", home
        self._entries: dict[str, Entry[T]] = {}
        self._found = False

    def register(self, name: str, value: T, settings: type | None = None) -> None:
        """Let a name stand for a value.

        Args:
            settings: a dataclass of the value's own settings, which a table such as [teacher.args] may set; all have defaults.
                By default the value itself, if it is a dataclass.

        Raises:
            UserError: the name stands for something else already, or `settings` is no such dataclass.
        """
        if not isinstance(name, str) or not name.isidentifier():
            raise UserError(f"the name of a {self.what} must be a Python identifier, found {name!r}")
        if settings is None and isinstance(value, type) and is_dataclass(value):
            settings = value
        if settings is not None and not is_dataclass(settings):
            raise UserError(f"the settings of the {self.what} {name!r} must be a dataclass, found {settings!r}")
        known = self._entries.get(name)
        if known is not None and known.value is not value:
            raise UserError(f"there is a {self.what} {name!r} already: choose another name")
        self._entries[name] = Entry(value, settings)

    def __getitem__(self, name: str) -> T:
        """The value. Raises UserError for an unknown name."""
        return self.entry(name).value

    def entry(self, name: str) -> Entry[T]:
        """Value and settings. Raises UserError for an unknown name."""
        if name not in self:
            close = difflib.get_close_matches(str(name), self._entries, n=1)
            advice = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(self)}"
            raise UserError(f"there is no {self.what} {name!r}: {advice}")
        return self._entries[name]

    def settings(self, name: str, values: dict[str, Any], where: str) -> Any:
        """The settings of a value as its dataclass; the values as they are where it has none.

        Args:
            where: the table that they come from, such as "teacher.args".

        Raises:
            UserError: a value has an unknown name, or is refused.
        """
        kind = self.entry(name).settings
        if kind is None:
            return dict(values)
        known = [each.name for each in fields(kind)]
        for given in values:
            if given not in known:
                close = difflib.get_close_matches(given, known, n=1)
                advice = f"did you mean {close[0]}?" if close else f"it has {', '.join(known) or 'none'}"
                raise UserError(f"{where}.{given} is no setting of the {self.what} {name!r}: {advice}")
        try:
            return kind(**values)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"{where} does not fit the {self.what} {name!r}: {error}") from error

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            self._find()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._find()
        return iter(self._entries)

    def __len__(self) -> int:
        self._find()
        return len(self._entries)

    def _find(self) -> None:
        """Import what registers names: the modules of this package, then the entry points."""
        if self._found:
            return
        self._found = True
        home = import_module(self.home)
        for module in sorted(each.name for each in pkgutil.iter_modules(getattr(home, "__path__", []))):
            import_module(f"{self.home}.{module}")
        for point in entry_points(group=self.group):
            try:
                value = point.load()
            except Exception as error:  # whatever another package's import does
                raise UserError(
                    f"the {self.what} {point.name!r} of the installed package {point.dist and point.dist.name} cannot be"
                    f" loaded ({error}): mend or remove that package"
                ) from error
            if point.name not in self._entries:  # unless its import has registered it, with settings
                self.register(point.name, value)


class ClassRegistry(Registry[Any]):
    """A Registry whose names may also be those of classes in a module, such as AdamW in torch.optim.

    Args:
        what, group, home: see `Registry`.
        module: where the classes are.
        base: the name of the class there that they are subclasses of.
        example: one of their names, for messages.
    """

    def __init__(self, what: str, group: str, home: str, module: str, base: str, example: str) -> None:
        super().__init__(what, group, home)
        self.module, self.base = module, base
        self.also = f"a class of {module} such as {example}"

    def register(self, name: str, value: Any, settings: type | None = None) -> None:
        """See `Registry`. Raises UserError for the name of a class, too."""
        if name in self.classes():
            raise UserError(f"there is a {self.what} {name!r} in {self.module} already: choose another name")
        super().register(name, value, settings)

    def classes(self) -> dict[str, type]:
        """The classes by name."""
        found = vars(import_module(self.module))
        base = found[self.base]
        return {
            name: each
            for name, each in found.items()
            if isinstance(each, type) and issubclass(each, base) and each is not base and not name.startswith("_")
        }

    def entry(self, name: str) -> Entry[Any]:
        """Value and settings. Raises UserError for an unknown name."""
        if not super().__contains__(name) and name in (classes := self.classes()):
            return Entry(classes[name], None)
        return super().entry(name)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.classes()


MODELS: Registry[Any] = Registry("model", "models", "bidistill.models")
METHODS: Registry[Any] = Registry("distillation method", "methods", "bidistill.distill")
LOSSES: Registry[Any] = Registry("loss", "losses", "bidistill.losses")
METRICS: Registry[Any] = Registry("metric", "metrics", "bidistill.metrics")
CATALOG_METRICS: Registry[Any] = Registry("metric of the catalog", "catalog_metrics", "bidistill.catalog_metrics")
OPTIMIZERS = ClassRegistry("optimizer", "optimizers", "bidistill.optimizers", "torch.optim", "Optimizer", "AdamW")
SCHEDULERS = ClassRegistry(
    "schedule of the learning rate",
    "schedulers",
    "bidistill.optimizers",
    "torch.optim.lr_scheduler",
    "LRScheduler",
    "CosineAnnealingLR",
)
