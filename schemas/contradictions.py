"""Contradictory settings: one that has no effect with the value of another, and two that set the same thing.

In: the assignments of all sources, by key. Out: the same without those that a later source overrides, or a
`ConfigError`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.settings import Assignment, Key, Level


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A setting that decides which others apply (`default` None: not decided yet).

    `noun` and `flag` are its names in messages.
    """

    key: Key
    default: str | None
    noun: str
    flag: str


def check_owner(last: dict[Key, Assignment], key: Key, owner: Owner, kinds: Sequence[str]) -> None:
    """Drop or refuse a setting that applies to other kinds than the chosen one."""
    assignment, choice = last.get(key), last.get(owner.key)
    kind = choice.value if choice is not None else owner.default
    if not is_given(assignment) or kind is None or kind in kinds:
        return
    if precedence(assignment) < precedence(choice):
        del last[key]
        return
    allowed = " or ".join([", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds)
    source = choice.source if choice is not None else "default"
    raise ConfigError(
        f"{assignment.source} applies to the {owner.noun} {allowed}, not to {kind} ({source})",
        hint=f"omit it, or give {owner.flag}{kinds[0]}",
    )


def check_rivals(last: dict[Key, Assignment], first: Key, second: Key, about: str) -> None:
    """Of two ways to set one thing the later source wins; one source may use only one of them."""
    assignment, other = last.get(first), last.get(second)
    if not is_given(assignment) or not is_given(other):
        return
    if precedence(assignment) == precedence(other):
        raise ConfigError(f"{assignment.source} and {other.source} both set {about}", hint="give only one of them")
    del last[min(assignment, other, key=precedence).key]


def precedence(assignment: Assignment | None) -> Level:
    """The level of a source; flags and --set are equal: they contradict instead of overriding each other."""
    return Level.DEFAULT if assignment is None else min(assignment.level, Level.SET)


def is_given(assignment: Assignment | None) -> TypeGuard[Assignment]:
    """Whether a value was given that differs from omitting the setting."""
    return assignment is not None and assignment.value not in (None, [], (), False)


def require_values(*settings: tuple[Any, str, str]) -> None:
    """Refuse missing settings that have no default: value, name and option of each."""
    missing = [(name, option) for value, name, option in settings if value is None]
    if missing:
        names, options = zip(*missing, strict=True)
        raise ConfigError(f"missing: {', '.join(names)}", hint=f"give {' '.join(options)}")
