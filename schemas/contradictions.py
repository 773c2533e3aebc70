"""Contradictions among settings: one that means nothing beside another, and two that say the same thing.

In: what every layer said, by place. Out: the same without what a later layer has overruled, or a `ConfigError` in a
sentence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.settings import Level, Place, Said


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A setting that decides which others mean something (`default` None: not yet decided).

    `noun`, `verb` and `flag` are how messages speak of it.
    """

    place: Place
    default: str | None
    noun: str
    flag: str
    verb: str = "this is"


def keep_if_owned(last: dict[Place, Said], place: Place, owner: Owner, kinds: Sequence[str]) -> None:
    """Drop or refuse a setting that belongs to other kinds than the one in force."""
    one, said = last.get(place), last.get(owner.place)
    kind = said.value if said is not None else owner.default
    if not means_something(one) or kind is None or kind in kinds:
        return
    if standing(one) < standing(said):
        del last[place]
        return
    belongs = " and ".join([", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds)
    said_so = f", as {said.by} says" if said is not None else " unless another kind is named"
    hint = f"leave it out, or give {owner.flag}{kinds[0]}"
    raise ConfigError(f"{one.by} belongs to {belongs} {owner.noun}, and {owner.verb} {kind}{said_so}", hint=hint)


def keep_the_later(last: dict[Place, Said], first: Place, second: Place, about: str) -> None:
    """Of two ways to say one thing the later layer is right, and one layer may use only one of them."""
    one, other = last.get(first), last.get(second)
    if not means_something(one) or not means_something(other):
        return
    if standing(one) == standing(other):
        raise ConfigError(f"{one.by} and {other.by} both say {about}", hint="give one of them")
    del last[min(one, other, key=standing).place]


def standing(one: Said | None) -> Level:
    """What is typed is typed at once: flags and --set contradict each other instead of overruling."""
    return Level.DEFAULT if one is None else min(one.level, Level.SET)


def means_something(one: Said | None) -> TypeGuard[Said]:
    """Whether a value was said that is more than leaving the setting out."""
    return one is not None and one.value not in (None, [], (), False)


def need(value: Any, what: str, flag: str) -> None:
    """Refuse a setting that nobody can guess and nobody gave."""
    if value is None:
        raise ConfigError(f"nothing says {what}", hint=f"give {flag}")
