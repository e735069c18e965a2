"""How an operator is declared: once.

Its inputs are one NamedTuple, whose annotations are the schema. `check` refuses wrong inputs and gives outputs of the right
shapes and dtypes, undefined: that is the fake, and it comes before `run` too, unless inputs of this form have passed it before.
What only a pass over a tensor tells is for `run` to check, and so is a Scalar, which is another number in each step.
"""

import types
import typing
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from bdkernels.backends import precision, steps
from bdkernels.backends.backend import Steps
from bdkernels.backends.streamed import streamed
from bdkernels.storage import mapped
from bdkernels.types.factors import Factors

LIBRARY = torch.library.Library("bdkernels", "DEF")
TYPES = {Tensor: "Tensor", list[Tensor]: "Tensor[]", int: "int", float: "float", str: "str", bool: "bool"}
FORMS = 1024  # of inputs that an operator remembers as checked


class Field(typing.NamedTuple):
    """A field of some inputs, as it lies among the arguments of the operator."""

    name: str
    kind: Any  # its annotation, without None
    optional: bool
    struct: bool  # a NamedTuple: one argument for each of its fields


def _fields(inputs: Any) -> list[Field]:
    found = []
    for name, kind in typing.get_type_hints(inputs).items():
        optional = typing.get_origin(kind) in (typing.Union, types.UnionType)
        if optional:
            (kind,) = (each for each in typing.get_args(kind) if each is not type(None))
        found.append(Field(name, kind, optional, hasattr(kind, "_fields")))
    return found


def schema(inputs: Any, given: Mapping[str, str] | None = None) -> str:
    """The arguments of an operator with these inputs. A field that is a NamedTuple itself takes one argument for each of its
    fields, called by both names; where such a field is optional, all of them are.

    given: torch's types of arguments for which it has several: "Scalar" for a float, "Tensor(a!)" for a tensor that changes.
    """
    defaults, given, arguments = inputs._field_defaults, dict(given or {}), []
    for field in _fields(inputs):
        if field.struct:
            pairs = [(f"{field.name}_{each.name}", each, field.optional) for each in _fields(field.kind)]
        else:
            pairs = [(field.name, field, False)]
        for name, each, all_optional in pairs:
            kind = given.pop(name, None) or TYPES[each.kind] + "?" * (each.optional or all_optional)
            default = f"={defaults[field.name]}" if field.name in defaults else ""
            arguments.append(f"{kind} {name}{default}")
    assert not given, given
    return ", ".join(arguments)


def reader(inputs: Any) -> Callable[[tuple[Any, ...]], Any]:
    """What makes the inputs of an operator's arguments."""
    fields = [(field, len(field.kind._fields) if field.struct else 1) for field in _fields(inputs)]

    def read(arguments: tuple[Any, ...]) -> Any:
        values: list[Any] = []
        at = 0
        for field, size in fields:
            if at == len(arguments):  # the others have their defaults
                break
            part = arguments[at : at + size]
            at += size
            if not field.struct:
                values.append(part[0])
            elif field.optional and (part[0] is None or part[-1] is None):
                if any(each is not None for each in part):
                    raise ValueError(f"{field.name}: expected both of {' and '.join(field.kind._fields)}, got one")
                values.append(None)
            else:
                values.append(field.kind(*part))
        return inputs(*values)

    return read


def define(
    name: str,
    inputs: Any,
    outputs: str,
    check: Callable[[Any], Any],
    run: Callable[[Any, str], Any],
    given: Mapping[str, str] | None = None,
) -> None:
    """Register torch.ops.bdkernels.<name>(*inputs, backend="") -> outputs; `given` as in `schema`."""
    arguments = schema(inputs, given)
    read = reader(inputs)
    known: set[tuple[Any, ...]] = set()
    changing = {at for at, each in enumerate(arguments.split(", ")) if each.startswith("Scalar")}

    @wraps(run)
    def real(*args: Any, backend: str = "") -> Any:
        found = read(args)
        with torch._C._DisableAutocast():  # arithmetic is what the reference says, also within torch.autocast
            form = _form(args, changing)
            if form is None or form not in known:
                check(found)
                if form is not None:
                    if len(known) == FORMS:
                        known.clear()
                    known.add(form)
            return run(found, backend)

    def fake(*args: Any, backend: str = "") -> Any:
        return check(read(args))

    LIBRARY.define(f"{name}({arguments}, *, str backend='') -> {outputs}")
    LIBRARY.impl(name, real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"bdkernels::{name}", fake, lib=LIBRARY)


def _form(arguments: tuple[Any, ...], changing: set[int]) -> tuple[Any, ...] | None:
    """All that `check` goes by, of arguments in memory; None where it has to look itself."""
    form: list[Any] = []
    for at, each in enumerate(arguments):
        if isinstance(each, (Tensor, list)):
            for t in (each,) if isinstance(each, Tensor) else each:
                if t.layout is not torch.strided:
                    return None
                form += (t.shape, t.stride(), t.dtype, t.device)
        elif at not in changing:
            form.append(each)
    return tuple(form)


def stages(backend: str, *models: Factors, listed: int | None = None) -> Steps:
    """The stages of the chosen backend for these models, whose tables may be mapped; of a call on all items, or so many."""
    users, items = models[0].user_factors, models[0].item_factors
    if listed is None:
        precision.asked()  # a wrong name is an error, also where the backend takes no notice of it
    found = steps(
        users.device, backend, users.dtype, work=users.numel() * (items.shape[0] if listed is None else listed)
    )
    return streamed(found) if mapped.any_mapped(*models) else found
