"""Settings from several mouths, one over the other: default < file < KDPIPE_* environment < --set a.b=c < flag.

In: what each layer said, read into plain values elsewhere. Out: one checked record, or a `ConfigError` that names who
said the wrong thing and the nearest name.
"""

import difflib
import json
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError

from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.records import Record, allowed_keys, annotations, is_model

R = TypeVar("R", bound=Record)
Place = tuple[str, ...]
Read = Callable[[str], Any]
PREFIX = "KDPIPE_"
WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
MAX_SHOWN = 60


class Level(IntEnum):
    """The layers, from the one that gives way to the one that has the last word."""

    DEFAULT = 0
    FILE = 1
    ENVIRONMENT = 2
    SET = 3
    FLAG = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One value for one setting; `by` is how a message names it: `--tau`, `targets.tau in the file kd.yaml`."""

    place: Place
    value: Any
    by: str
    level: Level


def from_file(kind: type[Record], values: Mapping[str, Any], name: str) -> list[Said]:
    """What a file says."""
    source = _Source(kind, Level.FILE, lambda place: f"{'.'.join(place)} in the file {name}", ".".join)
    return source.say((), values)


def from_environment(
    kind: type[Record], environment: Mapping[str, str], read: Read, others: Sequence[type[Record]] = ()
) -> list[Said]:
    """What variables such as KDPIPE_DATA__VAL_FRACTION say; those that only `others` know are meant for them."""
    said = []
    source = _Source(kind, Level.ENVIRONMENT, _variable, _variable)
    for name in sorted(environment):
        if name.startswith(PREFIX):
            place = tuple(name.removeprefix(PREFIX).lower().split("__"))
            if not _is_known(kind, place) and any(_is_known(other, place) for other in others):
                continue
            said += source.say(place, source.read(place, environment[name], read))
    return said


def from_sets(kind: type[Record], sets: Sequence[str], read: Read) -> list[Said]:
    """What `--set a.b=c` says, in the order of the command line."""
    said = []
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {_short(text)} gives no value", hint="write --set NAME=VALUE")
        place = tuple(name.strip().split("."))
        source = _Source(kind, Level.SET, partial(_named_in_set, text, place), ".".join)
        said += source.say(place, source.read(place, value, read))
    return said


def _named_in_set(text: str, place: Place, said: Place) -> str:
    typed = f"--set {_short(text)}"
    return typed if said == place else f"{'.'.join(said)} in {typed}"


def from_flag(kind: type[Record], flag: str, place: str, value: Any) -> list[Said]:
    """What one flag says about a setting, or about several below one."""
    return _Source(kind, Level.FLAG, lambda _: flag, ".".join).say(tuple(place.split(".")), value)


def by_dotted_name(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Every single value of nested groups by its dotted name; a list is one value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{above}.{key}" if above else str(key)
        found |= by_dotted_name(value, name) if isinstance(value, Mapping) else {name: value}
    return found


def layered(kind: type[R], said: Iterable[Said]) -> R:
    """The record of everything that was said; of two values for one setting the later one counts."""
    last = {one.place: one for one in said}
    values: dict[str, Any] = {}
    for place, one in last.items():
        inner = values
        for step in place[:-1]:
            inner = inner.setdefault(step, {})
        inner[place[-1]] = one.value
    try:
        return kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise _refusal(kind, error, last) from None


@dataclass(frozen=True, slots=True)
class _Source:
    """One layer: the record it speaks about, how its messages name a setting, and how a setting is spelled in it."""

    kind: type[Record]
    level: Level
    name: Callable[[Place], str]
    spell: Callable[[Place], str]

    def read(self, place: Place, text: str, read: Read) -> Any:
        """A text as the setting at a place wants it: as it stands for a name, otherwise as YAML."""
        self._known(place)
        types = annotations(self.kind, place)
        if _takes_text(types):
            return None if text in ("", "~", "null") and type(None) in types else text
        try:
            value = read(text)
            bare = _takes_list(types) and value is not None and not isinstance(value, list)
            return read(f"[{text}]") if bare else value
        except ValueError as error:
            raise ConfigError(f"{self.name(place)}: {error}") from None

    def say(self, place: Place, value: Any) -> list[Said]:
        """A value as what it says of single settings."""
        self._known(place)
        types = annotations(self.kind, place)
        if isinstance(value, str) and not _is_unicode(value):
            raise ConfigError(f"{self.name(place)}: {_short(ascii(value))} is not UTF-8 text")
        if not any(is_model(kind) for kind in types):
            return [Said(place=place, value=_fit(types, value), by=self.name(place), level=self.level)]
        if value is None:
            return []
        if not isinstance(value, Mapping):
            keys = ", ".join(sorted(allowed_keys(self.kind, place)))
            where = self.name(place)
            raise ConfigError(f"{where} is a group of settings, not {_short(repr(value))}", hint=f"in it are {keys}")
        return [one for key in value for one in self.say((*place, str(key)), value[key])]

    def _known(self, place: Place) -> None:
        for length in range(1, len(place) + 1):
            allowed = allowed_keys(self.kind, place[: length - 1])
            if place[length - 1] in allowed:
                continue
            by, wrong = self.name(place), self.spell(place[:length])
            if not allowed:
                raise ConfigError(
                    f"{_short(by)}: '{self.spell(place[: length - 1])}' is one value, nothing is below it"
                )
            near = _nearest(self.kind, place[:length])
            told = f": the nearest is '{self.spell(near)}'" if near else ""
            hint = f"allowed {'there ' if length > 1 else ''}are {', '.join(sorted(allowed))}"
            lead = "" if by == wrong else f"{by}: "
            raise ConfigError(f"{lead}unknown setting '{_short(wrong)}'{told}", hint=hint)


def _is_known(kind: type[Record], place: Place) -> bool:
    return all(place[n] in allowed_keys(kind, place[:n]) for n in range(len(place)))


def _variable(place: Place) -> str:
    return PREFIX + "__".join(place).upper()


def _nearest(kind: type[Record], place: Place) -> Place | None:
    """The setting that was probably meant: a neighbor, then one of the same name elsewhere, then a similar one."""
    neighbors = sorted(allowed_keys(kind, place[:-1]))
    if near := difflib.get_close_matches(place[-1], neighbors, n=1, cutoff=0.6):
        return (*place[:-1], near[0])
    everything = {".".join(each): each for each in _places(kind, ())}
    namesakes = [each for each in everything.values() if each[-1] == place[-1]]
    if namesakes:
        return namesakes[0]
    near = difflib.get_close_matches(".".join(place), sorted(everything), n=1, cutoff=0.6)
    return everything[near[0]] if near else None


def _places(kind: type[Record], place: Place) -> list[Place]:
    below = [(*place, name) for name in sorted(allowed_keys(kind, place))]
    return [each for one in below for each in (one, *_places(kind, one))]


def _takes_text(types: Sequence[Any]) -> bool:
    """Whether a setting is a name; one that is a number or a word is read as YAML, which tells the two apart."""
    named = any(typing.get_origin(kind) is typing.Literal for kind in types)
    return str in types or (named and not {int, float} & {kind for kind in types if isinstance(kind, type)})


def _takes_list(types: Sequence[Any]) -> bool:
    return any(typing.get_origin(kind) is tuple for kind in types)


def _is_unicode(text: str) -> bool:
    """Whether a text has no bytes in it that the system could not read as characters."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _fit(types: Sequence[Any], value: Any) -> Any:
    """Words for true and false where a truth is wanted, and whole numbers however they are written."""
    if bool in types and isinstance(value, str):
        return WORDS.get(value.lower(), value)
    if int in types and float not in types and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _refusal(kind: type[Record], error: ValidationError, said: Mapping[Place, Said]) -> ConfigError:
    """The first problem, with who said it, what was expected and what was found."""
    problem = error.errors()[0]
    place = tuple(problem["loc"])
    what = problem["msg"].removeprefix("Value error, ")
    said_of_input = "Input should be "
    if what.startswith(said_of_input):
        if isinstance(place[-1], str) and place[:-1] in said:  # one value that may be of several types
            place = place[:-1]
            what = " or ".join(one["msg"] for one in error.errors() if one["loc"][:-1] == place)
        what = f" must be {what.replace(said_of_input, '')}"
    else:
        what = f": {what[:1].lower()}{what[1:]}"
    if isinstance(problem["input"], str | int | float | None):
        what += f", not {_short(repr(problem['input']))}"
    hint = "put it in quotes" if problem["type"] == "string_type" else "correct it, or leave it out"
    for length in range(len(place), 0, -1):
        if one := said.get(tuple(map(str, place[:length]))):
            if problem["type"] == "extra_forbidden":
                return _unknown_in_item(kind, f"{one.by}{_item(place[length:-1])}", place)
            return ConfigError(f"{one.by}{_item(place[length:])}{what}", hint=hint)
    below = [one.by for key, one in said.items() if key[: len(place)] == place]
    return ConfigError(f"{', '.join(dict.fromkeys(below)) or 'the settings'}{what}", hint=hint)


def _item(place: Sequence[int | str]) -> str:
    """Where in a list a value stands: `: item 1`, or `: item 1, weights.ce` where items are groups."""
    if not place:
        return ""
    below = ".".join(map(str, place[1:]))
    return f": item {int(place[0]) + 1}" + (f", {below}" if below else "")


def _unknown_in_item(kind: type[Record], where: str, place: Sequence[int | str]) -> ConfigError:
    allowed = sorted(allowed_keys(kind, tuple(place[:-1])))
    near = difflib.get_close_matches(str(place[-1]), allowed, n=1, cutoff=0.6)
    told = f": the nearest is '{near[0]}'" if near else ""
    hint = f"allowed there are {', '.join(allowed)}"
    return ConfigError(f"{where}: unknown setting '{_short(str(place[-1]))}'{told}", hint=hint)


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
