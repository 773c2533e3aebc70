"""Settings from several sources by precedence: default < file < KDPIPE_* environment < --set a.b=c < flag.

In: the values of each source, parsed elsewhere. Out: one validated record, or a `ConfigError` that names the source of
the wrong value and the nearest name.
"""

import json
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError

from kdpipe.schemas.errors import ConfigError, nearest_name
from kdpipe.schemas.peer_names import PEER_NAMES
from kdpipe.schemas.records import Record, allowed_keys, annotations, is_model

R = TypeVar("R", bound=Record)
Key = tuple[str, ...]
Read = Callable[[str], Any]
PREFIX = "KDPIPE_"
WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
MAX_SHOWN = 60


class Level(IntEnum):
    """Sources of settings, lowest precedence first."""

    DEFAULT = 0
    FILE = 1
    ENVIRONMENT = 2
    SET = 3
    FLAG = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One value for one setting; `source` is its name in messages: `--tau`, `targets.tau in the file kd.yaml`."""

    key: Key
    value: Any
    source: str
    level: Level


def from_file(kind: type[Record], values: Mapping[str, Any], name: str) -> list[Assignment]:
    """The assignments of a file."""
    source = _Source(kind, Level.FILE, lambda key: f"{'.'.join(key)} in the file {name}", ".".join)
    return source.assign((), values)


def from_environment(
    kind: type[Record], environment: Mapping[str, str], read: Read, others: Sequence[type[Record]] = ()
) -> list[Assignment]:
    """The assignments of variables such as KDPIPE_DATA__VAL_FRACTION; those that only `others` know are skipped."""
    assignments = []
    source = _Source(kind, Level.ENVIRONMENT, _variable, _variable)
    for name in sorted(environment):
        if name.startswith(PREFIX):
            key = tuple(name.removeprefix(PREFIX).lower().split("__"))
            if not _is_known(kind, key) and any(_is_known(other, key) for other in others):
                continue
            assignments += source.assign(key, source.read(key, environment[name], read))
    return assignments


def from_sets(kind: type[Record], sets: Sequence[str], read: Read) -> list[Assignment]:
    """The assignments of `--set a.b=c`, in the order of the command line."""
    assignments = []
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {_short(text)} gives no value", hint="write --set NAME=VALUE")
        key = tuple(name.strip().split("."))
        source = _Source(kind, Level.SET, partial(_named_in_set, text, key), ".".join)
        assignments += source.assign(key, source.read(key, value, read))
    return assignments


def _named_in_set(text: str, typed: Key, key: Key) -> str:
    option = f"--set {_short(text)}"
    return option if key == typed else f"{'.'.join(key)} in {option}"


def from_flag(kind: type[Record], flag: str, key: str, value: Any) -> list[Assignment]:
    """The assignments of one flag: to a setting, or to several of a group."""
    return _Source(kind, Level.FLAG, lambda _: flag, ".".join).assign(tuple(key.split(".")), value)


def by_dotted_name(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Every single value of nested groups by its dotted name; a list is one value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{above}.{key}" if above else str(key)
        flat |= by_dotted_name(value, name) if isinstance(value, Mapping) else {name: value}
    return flat


def build(kind: type[R], assignments: Iterable[Assignment]) -> R:
    """The record of all assignments; of two values for one setting the later one counts."""
    last = {assignment.key: assignment for assignment in assignments}
    try:
        return _validated(kind, last.values())
    except ValidationError as error:
        raise _wrong_value(kind, error, last) from None


def _validated(kind: type[R], assignments: Iterable[Assignment]) -> R:
    values: dict[str, Any] = {}
    for assignment in assignments:
        inner = values
        for step in assignment.key[:-1]:
            inner = inner.setdefault(step, {})
        inner[assignment.key[-1]] = assignment.value
    return kind.model_validate_json(json.dumps(values))


def check_overridden(kind: type[Record], assignments: Sequence[Assignment]) -> None:
    """Refuse invalid values even if another source overrides them."""
    last = {assignment.key: assignment for assignment in assignments}
    for assignment in assignments:
        by = last[assignment.key]
        if assignment is by:
            continue
        try:
            _validated(kind, [assignment])
        except ValidationError as error:
            if error.errors()[0]["loc"][: len(assignment.key)] == assignment.key:
                wrong = _wrong_value(kind, error, {assignment.key: assignment})
                raise ConfigError(
                    wrong.message, hint=f"correct it, or leave it out: {by.source} overrides it"
                ) from None


@dataclass(frozen=True, slots=True)
class _Source:
    """One source: the record of its settings, their names in messages, and their spelling."""

    kind: type[Record]
    level: Level
    name: Callable[[Key], str]
    spell: Callable[[Key], str]

    def read(self, key: Key, text: str, read: Read) -> Any:
        """Parse the text of a setting: verbatim for a name, otherwise as YAML."""
        self._check_known(key)
        types = annotations(self.kind, key)
        if _takes_text(types):
            return None if text in ("", "~", "null") and type(None) in types else text
        try:
            value = read(text)
            bare = _takes_list(types) and value is not None and not isinstance(value, list)
            return read(f"[{text}]") if bare else value
        except ValueError as error:
            raise ConfigError(f"{self.name(key)}: {error}") from None

    def assign(self, key: Key, value: Any) -> list[Assignment]:
        """Assign a value to a setting, or the values of a mapping to the settings of a group."""
        self._check_known(key)
        types = annotations(self.kind, key)
        if isinstance(value, str) and not _is_unicode(value):
            raise ConfigError(f"{self.name(key)}: {_short(ascii(value))} is not UTF-8 text")
        if not any(is_model(kind) for kind in types):
            return [Assignment(key=key, value=_coerce(types, value), source=self.name(key), level=self.level)]
        if value is None:
            return []
        if not isinstance(value, Mapping):
            names = ", ".join(sorted(allowed_keys(self.kind, key)))
            raise ConfigError(
                f"{self.name(key)} is a group of settings, not {_short(repr(value))}", hint=f"its settings: {names}"
            )
        return [assignment for name in value for assignment in self.assign((*key, str(name)), value[name])]

    def _check_known(self, key: Key) -> None:
        for length in range(1, len(key) + 1):
            allowed = allowed_keys(self.kind, key[: length - 1])
            if key[length - 1] in allowed:
                continue
            source, wrong = self.name(key), self.spell(key[:length])
            if not allowed:
                raise ConfigError(f"{_short(source)}: '{self.spell(key[: length - 1])}' is a value, not a group")
            lead = "" if source == wrong else f"{source}: "
            raise unknown_setting(self.kind, key[:length], lead, self.spell)


def _is_known(kind: type[Record], key: Key) -> bool:
    return all(key[n] in allowed_keys(kind, key[:n]) for n in range(len(key)))


def _variable(key: Key) -> str:
    return PREFIX + "__".join(key).upper()


def unknown_setting(kind: type[Record], key: Key, lead: str, spell: Callable[[Key], str]) -> ConfigError:
    """The error for an unknown name: the setting with that name in another tool, or the nearest name."""
    wrong = f"{lead}unknown setting '{_short(spell(key))}'"
    if (here := PEER_NAMES.get(key[-1])) is not None:
        return ConfigError(f"{wrong}: here it is {here}", hint="docs/coming-from.md has the names of other tools")
    near = _nearest(kind, key)
    nearest = spell(near) if near else None
    shown = f": the nearest is '{nearest}'" if nearest else ""
    allowed = ", ".join(sorted(allowed_keys(kind, key[:-1])))
    hint = f"allowed {'there ' if len(key) > 1 else ''}are {allowed}"
    return ConfigError(f"{wrong}{shown}", hint=hint, nearest=nearest)


def _nearest(kind: type[Record], key: Key) -> Key | None:
    """The setting that was probably meant: in the same group, else of the same name elsewhere, else a similar one."""
    siblings = sorted(allowed_keys(kind, key[:-1]))
    if near := nearest_name(key[-1], siblings):
        return (*key[:-1], near)
    everything = {".".join(name): name for name in _keys(kind, ())}
    namesakes = [name for name in everything.values() if name[-1] == key[-1]]
    if namesakes:
        return namesakes[0]
    near = nearest_name(".".join(key), sorted(everything), cutoff=0.75)
    return everything[near] if near else None


def _keys(kind: type[Record], key: Key) -> list[Key]:
    below = [(*key, name) for name in sorted(allowed_keys(kind, key))]
    return [descendant for key_below in below for descendant in (key_below, *_keys(kind, key_below))]


def _takes_text(types: Sequence[Any]) -> bool:
    """Whether a setting is a name; one that may be a number or a name is parsed as YAML."""
    named = any(typing.get_origin(kind) is typing.Literal for kind in types)
    return str in types or (named and not {int, float} & {kind for kind in types if isinstance(kind, type)})


def _takes_list(types: Sequence[Any]) -> bool:
    return any(typing.get_origin(kind) is tuple for kind in types)


def _is_unicode(text: str) -> bool:
    """Whether the system could decode all bytes of a text."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _coerce(types: Sequence[Any], value: Any) -> Any:
    """Accept yes, no, on and off for booleans, and whole floats such as 1e3 for integers."""
    if bool in types and isinstance(value, str):
        return WORDS.get(value.lower(), value)
    if int in types and float not in types and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _wrong_value(kind: type[Record], error: ValidationError, given: Mapping[Key, Assignment]) -> ConfigError:
    """The first wrong value, with its source and what is allowed."""
    problem = error.errors()[0]
    loc = tuple(problem["loc"])
    # One value that may be of several types has a problem for each of them.
    several = bool(loc) and isinstance(loc[-1], str) and loc[:-1] in given
    problems = [other for other in error.errors() if other["loc"][:-1] == loc[:-1]] if several else [problem]
    loc = loc[:-1] if several else loc
    what = f" must be {' or '.join(map(expected, problems))}" if expected(problem) else f": {_reason(problem)}"
    if isinstance(problem["input"], str | int | float | None):
        what += f", not {_short(_as_given(problem['input']))}"
    for length in range(len(loc), 0, -1):
        if assignment := given.get(tuple(map(str, loc[:length]))):
            if problem["type"] == "extra_forbidden":
                lead = f"{assignment.source}{_item(loc[length:-1])}: "
                return unknown_setting(kind, tuple(map(str, loc)), lead, _last)
            near = _nearest_choice(problem)
            hint = f"did you mean {near}?" if near else _hint(problem)
            return ConfigError(f"{assignment.source}{_item(loc[length:])}{what}", hint=hint, nearest=near)
    below = [assignment.source for key, assignment in given.items() if key[: len(loc)] == loc]
    return ConfigError(f"{', '.join(dict.fromkeys(below)) or 'the settings'}{what}", hint=_hint(problem))


def expected(problem: Any) -> str:
    """What a value must be, in words; empty for rules that have a message of their own."""
    limits = problem.get("ctx", {})
    match problem["type"]:
        case "int_parsing" | "int_type" | "int_from_float":
            return "a whole number"
        case "float_parsing" | "float_type" | "finite_number":
            return "a number"
        case "bool_parsing" | "bool_type":
            return "true or false"
        case "string_type":
            return "text"
        case "tuple_type" | "list_type":
            return "a list"
        case "none_required":
            return "nothing"
        case "literal_error":
            return _choices(str(limits["expected"]))
        case "greater_than":
            return f"greater than {_limit(limits['gt'])}"
        case "greater_than_equal":
            return f"at least {_limit(limits['ge'])}"
        case "less_than":
            return f"less than {_limit(limits['lt'])}"
        case "less_than_equal":
            return f"at most {_limit(limits['le'])}"
        case "string_too_short" | "too_short":
            return "longer" if limits.get("min_length", 1) > 1 else "not empty"
        case "string_pattern_mismatch":
            return f"of the form {limits['pattern']}"
        case _:
            return ""


def _limit(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def _choices(quoted: str) -> str:
    return quoted.replace("'", "")


def _reason(problem: Any) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def _hint(problem: Any) -> str:
    return "put it in quotes" if problem["type"] == "string_type" else "correct it, or leave it out"


def _nearest_choice(problem: Any) -> str | None:
    """The nearest of the allowed words."""
    if problem["type"] != "literal_error" or not isinstance(problem["input"], str):
        return None
    choices = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
    return nearest_name(problem["input"].replace("_", "-"), choices)


def _as_given(value: str | float | None) -> str:
    return repr(value) if isinstance(value, str) else json.dumps(value)


def _last(key: Key) -> str:
    return key[-1]


def _item(path: Sequence[int | str]) -> str:
    """The position of a value in a list: `: item 1`, or `: item 1, weights.ce` where items are groups."""
    if not path:
        return ""
    below = ".".join(map(str, path[1:]))
    return f": item {int(path[0]) + 1}" + (f", {below}" if below else "")


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
