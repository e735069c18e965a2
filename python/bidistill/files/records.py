"""Records: JSON files that are read back. Each has a format version, a seal, and a schema that pydantic checks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bidistill.errors import UserError
from bidistill.files.access import read_bytes, replacing
from bidistill.files.seal import BLANK, blanked, digest


class Section(BaseModel):
    """A part of a record: no key may be missing or unknown, no value is of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Record(Section):
    """What a JSON file holds. FORMAT names its kind and version."""

    FORMAT: ClassVar[str]
    REMEDY: ClassVar[str] = "restore the file from a copy, or train the run again"


def write_record(path: str | os.PathLike[str], record: Record, *, parents: bool = True) -> None:
    """Write a record, whole or not at all. Raises UserError where that cannot be done."""
    values = {"format": record.FORMAT, "sha256": BLANK} | record.model_dump()
    text = (json.dumps(values, indent=1) + "\n").encode()
    with replacing(path, parents=parents) as temporary:
        temporary.write_bytes(text.replace(BLANK.encode(), digest(text).encode(), 1))


def read_record(path: str | os.PathLike[str], kind: type[R]) -> R:
    """Read a record of this kind.

    Raises:
        UserError: one sentence that says that the file is missing, damaged, of another version, or not as its schema says.
    """
    name, text = os.fspath(path), read_bytes(path)
    try:
        values = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is damaged (it is no JSON: {error}): {kind.REMEDY}") from error
    if not isinstance(values, dict):
        raise UserError(f"{name} is damaged (it holds no record): {kind.REMEDY}")
    form, seal = values.pop("format", None), values.pop("sha256", None)
    if not isinstance(seal, str):
        raise UserError(f"{name} is damaged, or was written by an earlier version of bidistill: {kind.REMEDY}")
    sealed = digest(blanked(text, seal)) == seal
    if not sealed and form == kind.FORMAT:
        raise UserError(f"{name} is damaged (its checksum is not the one that it names): {kind.REMEDY}")
    if not sealed:
        raise UserError(
            f"{name} is damaged or of another version (it names the format {form!r}, this version reads {kind.FORMAT!r}):"
            f" {kind.REMEDY}"
        )
    if form != kind.FORMAT:
        raise UserError(f"{name} is of the format {form!r}, but this version reads {kind.FORMAT!r}: {kind.REMEDY}")
    return checked(Path(name), kind, values, kind.REMEDY)


def checked(path: Path, kind: type[B], values: dict[str, Any], remedy: str) -> B:
    """The values of a file as its schema has them, or a UserError that names the first that is not."""
    try:
        return kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "its values"
        raise UserError(f"{path} is not as this version writes it ({place}: {first['msg']}): {remedy}") from error


R = TypeVar("R", bound="Record")


B = TypeVar("B", bound=BaseModel)
