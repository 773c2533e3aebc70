"""The manifest of a requantized cache, which never keeps more than its source.

In: the manifest of a cache, and a `RequantizeSpec`. Out: the manifest with fewer targets, arrays and tables, or a
`ConfigError` that names the setting that needs more than the source has.
"""

from dataclasses import dataclass
from typing import Any, get_args

from kdpipe.cache.reshape.adopt import with_changes, without_rows
from kdpipe.schemas.arrays import default_arrays
from kdpipe.schemas.capture_settings import PROFILES, TargetSettings
from kdpipe.schemas.choices import RequantizedKind
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import Manifest, expected_tables
from kdpipe.schemas.reshape import RequantizeSpec
from kdpipe.schemas.targets import CAPTURED, KeptSpec, State, TargetSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """How much a kind of target keeps: a setting of `RequantizeSpec`, and the field of the kind's record."""

    setting: str
    field: str

    @property
    def option(self) -> str:
        return f"--{self.setting.replace('_', '-')}"


AMOUNTS: dict[RequantizedKind, Amount] = {
    "threshold": Amount(setting="tau", field="tau"),
    "sampled": Amount(setting="draws", field="draws"),
    "topk": Amount(setting="top_k", field="k"),
    "topp": Amount(setting="top_p", field="p"),
}


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
    given = [amount for amount in AMOUNTS.values() if getattr(spec, amount.setting) is not None]
    own = next((amount for kind, amount in AMOUNTS.items() if kind == keep.kind), None)
    if other := [amount for amount in given if amount != own]:
        raise ConfigError(
            f"{other[0].option} does not apply to targets of kind {keep.kind}",
            hint="omit it" if own is None else f"use {own.option}",
        )
    if own is None or not given:
        return keep
    value, old = getattr(spec, own.setting), getattr(keep, own.field)
    reduced = keep.model_copy(update={own.field: type(old)(value)})
    if reduced.is_richer_than(keep):  # type: ignore[arg-type]  # a copy has the type of its original
        raise ConfigError(
            f"{own.option} {value:g} needs more than the cache has, which was made with {old:g}",
            hint="make a new cache with cache-teacher",
        )
    return reduced


def _from_state(keep: State, spec: RequantizeSpec) -> KeptSpec:
    """A target of the given kind, with the defaults of cache-teacher."""
    given = [kind for kind in get_args(RequantizedKind) if getattr(spec, AMOUNTS[kind].setting) is not None]
    kind: RequantizedKind | None = spec.targets or (given[0] if given else None)
    if kind is None:
        return keep
    if other := [AMOUNTS[name].option for name in given if name != kind]:
        raise ConfigError(f"{other[0]} does not apply to targets of kind {kind}", hint=f"use {AMOUNTS[kind].option}")
    amount, defaults = AMOUNTS[kind], TargetSettings(tau=PROFILES["standard"])
    value = getattr(spec, amount.setting) or getattr(defaults, amount.setting)
    target: KeptSpec = CAPTURED[kind].model_validate({amount.field: value})  # type: ignore[assignment]
    return target
