"""The base class of every record that is read from a file, and the wording of its errors.

In: JSON bytes and a record class. Out: a frozen record, or an error that names the key, its path and the nearest
allowed key.
"""

import types
import typing
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from kdpipe.schemas import display, strict_json
from kdpipe.schemas.errors import FileDamaged, nearest_name

# A list of a million wrong numbers has a million problems, each of which takes a kilobyte once it is formatted.
MAX_PROBLEMS = 1000
MAX_SHOWN = 100


class Record(BaseModel):
    """A frozen record that refuses unknown keys, NaN and values of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __repr__(self) -> str:
        return display.one_line(type(self).__name__, dict(self))

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        return display.html_table(type(self).__name__, dict(self))

    def to_json(self) -> bytes:
        """The record as canonical JSON."""
        return strict_json.canonical(self.model_dump(mode="json"))


R = TypeVar("R", bound=Record)


def read_record(
    kind: type[R],
    data: bytes,
    what: str,
    *,
    ignore_unknown: bool = False,
    damaged: type[FileDamaged] = FileDamaged,
) -> R:
    """Read a record from strict JSON, or raise `damaged`; `ignore_unknown` drops keys of a newer minor version."""
    value = strict_json.parse(data, what, damaged=damaged)
    try:
        record = _validate(kind, value)
    except ValidationError as error:
        if not ignore_unknown or error.error_count() > MAX_PROBLEMS:
            raise damaged(f"{what}: {explain(kind, error)}") from None
        for problem in error.errors():
            if problem["type"] == "extra_forbidden":
                _drop(value, problem["loc"])
        try:
            return _validate(kind, value)
        except ValidationError as remaining:
            raise damaged(f"{what}: {explain(kind, remaining)}") from None
    if not ignore_unknown and record.to_json() != data:
        raise damaged(f"{what} is not in canonical form, so its digest is not its identity")
    return record


def _validate(kind: type[R], value: Any) -> R:
    return kind.model_validate_json(strict_json.canonical(value))


def explain(kind: type[BaseModel], error: ValidationError) -> str:
    """The errors in one line: the first problem, its path, and the nearest allowed key for an unknown one."""
    if error.error_count() > MAX_PROBLEMS:
        return f"{error.error_count():,} values are wrong"
    problem = error.errors()[0]
    place = ".".join(_printable(str(step)) for step in problem["loc"]) or "the top level"
    more = "" if error.error_count() == 1 else f" (and {error.error_count() - 1} more)"
    if problem["type"] == "extra_forbidden":
        name, allowed = _printable(str(problem["loc"][-1])), sorted(allowed_keys(kind, problem["loc"][:-1]))
        near = nearest_name(name, allowed, cutoff=0.5)
        hint = f"the nearest allowed one is '{near}'" if near else f"allowed are {', '.join(allowed)}"
        return f"unknown key '{place}': {hint}{more}"
    return f"{place}: {problem['msg'][:1].lower()}{problem['msg'][1:]}{more}"


def _printable(key: str) -> str:
    """A key for a message: shortened, control characters escaped."""
    short = key if len(key) <= MAX_SHOWN else f"{key[:MAX_SHOWN]}..."
    return short if short.isprintable() else ascii(short)[1:-1]


def allowed_keys(kind: type[BaseModel], place: tuple[int | str, ...]) -> set[str]:
    """The allowed keys at a path inside a record."""
    return {name for item in annotations(kind, place) if is_model(item) for name in item.model_fields}


def annotations(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[Any]:
    """The allowed types at a path inside a record: the members of a union, or one type; empty for an unknown path."""
    types_there: list[Any] = [kind]
    for step in place:
        types_there = [below for item in types_there for below in _step(item, step)]
    return types_there


def _step(annotation: Any, step: int | str) -> list[Any]:
    """The annotations one step down: a field, an element, or the member of a union with this tag."""
    if is_model(annotation):
        field = annotation.model_fields.get(str(step))
        return _open(field.annotation) if field is not None else ([annotation] if _tagged(annotation, step) else [])
    arguments = [argument for argument in typing.get_args(annotation) if argument is not Ellipsis]
    return [member for argument in arguments[-1:] for member in _open(argument)]


def _open(annotation: Any) -> list[Any]:
    """A union's members, or the annotation itself."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _open(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [member for argument in typing.get_args(annotation) for member in _open(argument)]
    return [annotation]


def _tagged(kind: type[BaseModel], tag: int | str) -> bool:
    field = kind.model_fields.get("kind")
    return field is not None and tag in typing.get_args(field.annotation)


def is_model(annotation: Any) -> bool:
    """Whether an annotation is the class of a record."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _drop(value: Any, place: tuple[int | str, ...]) -> None:
    """Remove the key at a path; steps that are tags of a union are not in the data and are skipped."""
    for step in place[:-1]:
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and isinstance(step, int):
            value = value[step]
    if isinstance(value, dict):
        value.pop(place[-1], None)
