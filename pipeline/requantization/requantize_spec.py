"""The manifest of a requantized cache, which never keeps more than its source.

In: the manifest of a cache, and a `RequantizeSpec`. Out: the manifest with fewer targets, arrays and tables, or a
`ConfigError` that names the setting that needs more than the source has.
"""

from typing import Any

from kdpipe.cache.reshape.adopt import with_changes, without_rows
from kdpipe.schemas.arrays import default_arrays
from kdpipe.schemas.capture_settings import TargetSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import Manifest, expected_tables
from kdpipe.schemas.reshape import RequantizeSpec
from kdpipe.schemas.target_kinds import PROFILES, State
from kdpipe.schemas.targets import CAPTURED, RECORDS, KeptSpec, TargetSpec

# What decides how much a kind keeps: a setting of `RequantizeSpec`, by kind.
AMOUNTS = {name: kind.requantized_by for name, kind in RECORDS.items() if kind.requantized_by is not None}


def requantized_manifest(manifest: Manifest, spec: RequantizeSpec) -> Manifest:
    """The manifest with less in it; plan and history are unchanged."""
    if "hidden" in spec.drop:
        if not manifest.hidden.rows:
            raise _not_in_cache("hidden")
        manifest = without_rows(manifest)
    targets = requantized_targets(manifest.targets, spec)
    if spec.seed is not None and (targets.keep == manifest.targets.keep or not targets.has_draws):
        raise ConfigError(
            f"--seed {spec.seed} has no effect: no ids are resampled", hint="omit it, or set --tau or --draws"
        )
    seed = manifest.seed if spec.seed is None else spec.seed
    if targets == manifest.targets and "hidden" not in spec.drop:
        raise ConfigError("the new cache would be identical to its source", hint="set --tau, --temperatures or --drop")
    expected = expected_tables(targets, manifest.hidden, manifest.vocabulary_size)
    old = expected_tables(manifest.targets, manifest.hidden, manifest.vocabulary_size)
    tables = tuple(table for table in manifest.tables if table in expected or table not in old)
    return with_changes(manifest, targets=targets, seed=seed, tables=tables, arrays=_arrays(manifest, targets))


def _arrays(manifest: Manifest, targets: TargetSpec) -> Any:
    """The arrays of the new targets, with the quantizers of the source for those that it has."""
    expected = default_arrays(targets, manifest.hidden, manifest.vocabulary_size)
    known = {column.name: column for column in manifest.arrays.row.columns}
    columns = tuple(known.get(column.name, column) for column in expected.row.columns)
    changes: dict[str, Any] = {"row": manifest.arrays.row.model_copy(update={"columns": columns})}
    for name in ("id", "times", "logprob", "hidden", "state"):
        own = getattr(manifest.arrays, name)
        changes[name] = (own or getattr(expected, name)) if getattr(expected, name) is not None else None
    return manifest.arrays.model_copy(update=changes)


def requantized_targets(targets: TargetSpec, spec: RequantizeSpec) -> TargetSpec:
    """The target spec with less in it."""
    changes: dict[str, Any] = {"keep": _keep(targets.keep, spec), "temperatures": _temperatures(targets, spec)}
    for name in spec.drop:
        key = name.replace("-", "_")
        if name != "hidden":
            if not getattr(targets, key):
                raise _not_in_cache(name)
            changes[key] = False
    return TargetSpec.model_validate({**dict(targets), **changes})


def _not_in_cache(name: str) -> ConfigError:
    return ConfigError(f"--drop {name}: the cache does not have it", hint="list its contents: kdpipe cache inspect")


def _temperatures(targets: TargetSpec, spec: RequantizeSpec) -> tuple[float, ...]:
    if spec.temperatures is None:
        return targets.temperatures
    if more := [t for t in spec.temperatures if t not in targets.temperatures]:
        known = ", ".join(f"{t:g}" for t in targets.temperatures) or "none"
        raise ConfigError(
            f"--temperatures {more[0]:g} is not in the cache, which has {known}", hint="choose a subset of those"
        )
    own = targets.target_temperature
    if own != 1.0 and own not in spec.temperatures:
        raise ConfigError(
            f"--temperatures must include {own:g}, the temperature of the cache's targets", hint=f"add {own:g}"
        )
    return tuple(t for t in targets.temperatures if t in spec.temperatures)


def _keep(keep: KeptSpec, spec: RequantizeSpec) -> KeptSpec:
    """A target of the same kind that keeps at most as much; of any kind from states."""
    if isinstance(keep, State):
        return _from_state(keep, spec)
    if spec.targets not in (None, keep.kind):
        raise ConfigError(
            f"--targets {spec.targets}: the cache has targets of kind {keep.kind}, which cannot be converted",
            hint="only a cache of states can change its kind; use cache-teacher",
        )
    given = [setting for setting in AMOUNTS.values() if getattr(spec, setting) is not None]
    own = keep.requantized_by
    if other := [setting for setting in given if setting != own]:
        raise ConfigError(
            f"{_option(other[0])} does not apply to targets of kind {keep.kind}",
            hint="omit it" if own is None else f"use {_option(own)}",
        )
    if own is None or not given:
        return keep
    field = keep.settings[own]
    value, old = getattr(spec, own), getattr(keep, field)
    reduced = keep.model_copy(update={field: type(old)(value)})
    if reduced.is_richer_than(keep):
        raise ConfigError(
            f"{_option(own)} {value:g} needs more than the cache has, which was made with {old:g}",
            hint="make a new cache with cache-teacher",
        )
    return reduced


def _from_state(keep: State, spec: RequantizeSpec) -> KeptSpec:
    """A target of the given kind, with the defaults of cache-teacher."""
    given = [kind for kind, setting in AMOUNTS.items() if getattr(spec, setting) is not None]
    kind = spec.targets or (given[0] if given else None)
    if kind is None:
        return keep
    own = AMOUNTS[kind]
    if other := [AMOUNTS[name] for name in given if name != kind]:
        raise ConfigError(f"{_option(other[0])} does not apply to targets of kind {kind}", hint=f"use {_option(own)}")
    value = getattr(spec, own) or getattr(TargetSettings(tau=PROFILES["standard"]), own)
    return CAPTURED[kind].model_validate({CAPTURED[kind].settings[own]: value})


def _option(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"
