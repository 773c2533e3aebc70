"""What a poorer cache keeps: never more than its source, whose teacher is not asked again.

In: the manifest of a cache, and what is to be less. Out: the manifest's new targets, arrays and tables, or what would
be richer.
"""

from typing import Any

from kdpipe.cache.reshape.adopt import with_changes, without_rows
from kdpipe.schemas.arrays import default_arrays
from kdpipe.schemas.capture_settings import TargetSettings
from kdpipe.schemas.choices import RequantizedKind
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import Manifest, expected_tables
from kdpipe.schemas.reshape import RequantizeSpec
from kdpipe.schemas.targets import KeptSpec, Sampled, State, TargetSpec, Threshold, TopK, TopP

# The option that each kind is made poorer with, its setting, and the number of the target that it sets.
OPTIONS: dict[str, tuple[str, str, str]] = {
    "threshold": ("--tau", "tau", "tau"),
    "sampled": ("--draws", "draws", "draws"),
    "topk": ("--top-k", "top_k", "k"),
    "topp": ("--top-p", "top_p", "p"),
}
SETTINGS = ("tau", "draws", "top_k", "top_p")


def requantized_manifest(manifest: Manifest, asked: RequantizeSpec) -> Manifest:
    """The manifest with less in it, its plan and history as they were."""
    if "hidden" in asked.drop:
        if not manifest.hidden.rows:
            raise _not_there("hidden")
        manifest = without_rows(manifest)
    targets = requantized_targets(manifest.targets, asked)
    if asked.seed is not None and (targets.keep == manifest.targets.keep or not targets.has_draws):
        raise ConfigError(
            f"--seed {asked.seed} would change nothing: no id is drawn again",
            hint="leave it out, or give --tau or --draws",
        )
    seed = manifest.seed if asked.seed is None else asked.seed
    if targets == manifest.targets and "hidden" not in asked.drop:
        raise ConfigError(
            "nothing would be less: the new cache would be the old one", hint="give --tau, --temperatures or --drop"
        )
    due = expected_tables(targets, manifest.hidden, manifest.vocabulary_size)
    old = expected_tables(manifest.targets, manifest.hidden, manifest.vocabulary_size)
    tables = tuple(table for table in manifest.tables if table in due or table not in old)
    return with_changes(manifest, targets=targets, seed=seed, tables=tables, arrays=_arrays(manifest, targets))


def _arrays(manifest: Manifest, targets: TargetSpec) -> Any:
    """The quantizers of the source for all that it has already."""
    due = default_arrays(targets, manifest.hidden, manifest.vocabulary_size)
    there = {column.name: column for column in manifest.arrays.row.columns}
    columns = tuple(there.get(column.name, column) for column in due.row.columns)
    changes: dict[str, Any] = {"row": manifest.arrays.row.model_copy(update={"columns": columns})}
    for name in ("id", "times", "logprob", "hidden", "state"):
        own = getattr(manifest.arrays, name)
        changes[name] = (own or getattr(due, name)) if getattr(due, name) is not None else None
    return manifest.arrays.model_copy(update=changes)


def requantized_targets(targets: TargetSpec, asked: RequantizeSpec) -> TargetSpec:
    """The target spec with less in it."""
    kept = _temperatures(targets, asked)
    changes: dict[str, Any] = {"keep": _keep(targets.keep, asked), "temperatures": kept}
    for name in asked.drop:
        key = name.replace("-", "_")
        if name != "hidden":
            if not getattr(targets, key):
                raise _not_there(name)
            changes[key] = False
    return TargetSpec.model_validate({**dict(targets), **changes})


def _not_there(name: str) -> ConfigError:
    return ConfigError(f"--drop {name}: the cache does not have it", hint="see what it has with `kdpipe cache inspect`")


def _temperatures(targets: TargetSpec, asked: RequantizeSpec) -> tuple[float, ...]:
    if asked.temperatures is None:
        return targets.temperatures
    there = ", ".join(f"{t:g}" for t in targets.temperatures) or "none"
    if more := [t for t in asked.temperatures if t not in targets.temperatures]:
        raise ConfigError(
            f"--temperatures {more[0]:g} would be richer: the cache has {there}", hint="choose among those that it has"
        )
    own = targets.target_temperature
    if own != 1.0 and own not in asked.temperatures:
        raise ConfigError(
            f"--temperatures leaves out {own:g}, at which weights are read", hint=f"name {own:g} among them"
        )
    return tuple(t for t in targets.temperatures if t in asked.temperatures)


def _keep(keep: KeptSpec, asked: RequantizeSpec) -> KeptSpec:
    """a target of the same kind that keeps no more; of states any kind."""
    if isinstance(keep, State):
        return _of_state(keep, asked)
    if asked.targets not in (None, keep.kind):
        raise ConfigError(
            f"the cache keeps targets of kind {keep.kind}, --targets {asked.targets} cannot be made of them",
            hint="only states tell the whole distribution: use cache-teacher",
        )
    given = [name for name in SETTINGS if getattr(asked, name) is not None]
    option, own, number = OPTIONS.get(keep.kind, ("", "", ""))
    if foreign := [name for name in given if name != own]:
        raise ConfigError(
            f"--{foreign[0].replace('_', '-')} is not for targets of kind {keep.kind}",
            hint=f"make them poorer with {option}" if option else "leave it out",
        )
    if not given:
        return keep
    return _less(keep, number, getattr(asked, own), option)


def _less(keep: KeptSpec, number: str, wanted: Any, option: str) -> KeptSpec:
    """the target with another number, which must not be richer."""
    there = getattr(keep, number)
    # A lower tau keeps more, everything else keeps more when it is higher.
    is_richer = wanted < there if keep.kind == "threshold" else wanted > there
    if is_richer:
        raise ConfigError(
            f"{option} {wanted:g} would be richer: the cache was made with {there:g}",
            hint="what was not kept cannot be made again: use cache-teacher",
        )
    return keep.model_copy(update={number: type(there)(wanted)})


def _of_state(keep: State, asked: RequantizeSpec) -> KeptSpec:
    """What is asked for of the whole distribution, with stage one's own defaults."""
    given = [name for name in SETTINGS if getattr(asked, name) is not None]
    kinds: list[RequantizedKind] = ["threshold", "sampled", "topk", "topp"]
    named = [kind for kind in kinds if OPTIONS[kind][1] in given]
    kind = asked.targets or (named[0] if named else None)
    if kind is None:
        return keep
    if foreign := [OPTIONS[other][0] for other in named if other != kind]:
        raise ConfigError(f"{foreign[0]} is not for targets of kind {kind}", hint=f"use {OPTIONS[kind][0]}")
    plain = TargetSettings()
    match kind:
        case "threshold":
            return Threshold(tau=asked.tau or 1 / 25)
        case "sampled":
            return Sampled(draws=asked.draws or plain.draws)
        case "topk":
            return TopK(k=asked.top_k or plain.top_k)
        case "topp":
            return TopP(p=asked.top_p or plain.top_p)
