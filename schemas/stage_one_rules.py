"""What contradicts itself among the settings of stage one, and what is missing: said before anything is loaded.

In: what every layer said, or the settings made of it. Out: the same without what a later layer has overruled, or a
`ConfigError` in a sentence. Before it: `settings.py`. After it: `cli/stage_one_options.py`.
"""

from collections.abc import Iterable
from typing import Any, TypeGuard

from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.settings import Level, Place, Said
from kdpipe.schemas.stage_one import StageOne

KIND = ("targets", "kind")
OF_A_TEACHER = ("threshold", "sampled", "topk", "topp", "state")
# The kinds of targets for which a setting means something.
OF_KINDS: dict[Place, tuple[str, ...]] = {
    ("targets", "profile"): ("threshold",),
    ("targets", "tau"): ("threshold",),
    ("targets", "top_k"): ("topk",),
    ("targets", "top_p"): ("topp",),
    ("targets", "draws"): ("sampled",),
    ("targets", "max_entries"): ("threshold", "topp"),
    ("targets", "draw_values"): ("threshold", "sampled"),
    ("targets", "target_temperature"): ("threshold", "sampled", "topk", "topp"),
    ("targets", "temperatures"): OF_A_TEACHER,
    ("hidden", "layers"): OF_A_TEACHER,
    ("teacher", "dtype"): OF_A_TEACHER,
    ("teacher", "quantise"): OF_A_TEACHER,
    ("machine", "devices"): OF_A_TEACHER,
}
# Two ways to say one thing: the later layer is right, and one layer may use only one of them.
RIVALS: tuple[tuple[Place, Place, str], ...] = (
    (("targets", "tau"), ("targets", "profile"), "how much threshold targets keep"),
    (("data", "val_path"), ("data", "val_fraction"), "which documents are held out"),
)
LAYERS, DIM = ("hidden", "layers"), ("hidden", "dim")


def settled(said: Iterable[Said]) -> list[Said]:
    """What was said without what a later layer has overruled; two contradicting words of equal standing are refused."""
    last = {one.place: one for one in said}
    for place, kinds in OF_KINDS.items():
        _keep_if_of_kind(last, place, kinds)
    for first, second, about in RIVALS:
        _keep_the_later(last, first, second, about)
    _keep_if_layers_are_named(last)
    return list(last.values())


def require(settings: StageOne, *, data: bool = True, out: bool = True) -> None:
    """Refuse settings that leave out what nobody can guess."""
    name = settings.teacher.name
    if settings.targets.kind == "none":
        _need(settings.teacher.tokenizer or name, "which tokenizer to use", "--tokenizer DIR")
    else:
        _need(name, "which teacher to ask", "--teacher NAME")
    if data:
        _need(settings.data.path, "which documents to read", "--data PATH")
    if out:
        _need(settings.out, "where the cache goes", "--out DIR")


def _need(value: Any, what: str, flag: str) -> None:
    if value is None:
        raise ConfigError(f"nothing says {what}", hint=f"give {flag}")


def _keep_if_of_kind(last: dict[Place, Said], place: Place, kinds: tuple[str, ...]) -> None:
    one, owner = last.get(place), last.get(KIND)
    kind = owner.value if owner is not None else "threshold"
    if not _means_something(one) or kind in kinds:
        return
    if _standing(one) < _standing(owner):
        del last[place]
        return
    belongs = " and ".join([", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds)
    said_so = f", as {owner.by} says" if owner is not None else " unless another kind is named"
    hint = f"leave it out, or give --targets {kinds[0]}"
    raise ConfigError(f"{one.by} belongs to {belongs} targets, and these are {kind}{said_so}", hint=hint)


def _keep_the_later(last: dict[Place, Said], first: Place, second: Place, about: str) -> None:
    one, other = last.get(first), last.get(second)
    if not _means_something(one) or not _means_something(other):
        return
    if _standing(one) == _standing(other):
        raise ConfigError(f"{one.by} and {other.by} both say {about}", hint="give one of them")
    del last[min(one, other, key=_standing).place]


def _keep_if_layers_are_named(last: dict[Place, Said]) -> None:
    one, owner = last.get(DIM), last.get(LAYERS)
    if one is None or _means_something(owner):
        return
    if _standing(one) < _standing(owner):
        del last[DIM]
        return
    what = "is for hidden states of every position, and no layer is named"
    raise ConfigError(f"{one.by} {what}", hint="give --hidden-layers 0.5,1.0, or leave it out")


def _standing(one: Said | None) -> Level:
    """What is typed is typed at once: flags and --set contradict each other instead of overruling."""
    return Level.DEFAULT if one is None else min(one.level, Level.SET)


def _means_something(one: Said | None) -> TypeGuard[Said]:
    return one is not None and one.value not in (None, [], (), False)
