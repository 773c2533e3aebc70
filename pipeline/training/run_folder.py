"""The folder of a run: created, recognized, refused if it is another run's, or cleared with --overwrite.

In: OUT and the record of a run. Out: OUT/run.json.
"""

import os
import shutil
from pathlib import Path
from typing import Any, Final

from kdpipe.cache.durable.files import make_dir, publish_file, replace_file, sweep, sync_dir, translate_os_errors
from kdpipe.cache.durable.lock import LOCK
from kdpipe.cache.layout import WORK
from kdpipe.cache.reader import Cache
from kdpipe.schemas.checkpoint import RunRecord
from kdpipe.schemas.errors import ConfigError, FileDamaged
from kdpipe.schemas.records import read_record
from kdpipe.schemas.settings import by_dotted_name
from kdpipe.schemas.strict_json import canonical, sha256_hex

RECORD: Final = "run.json"
# Settings that may change when a run is resumed: locations (their content is compared), trackers, what is saved, and
# how the machine is used.
MAY_DIFFER: Final = (
    "earlier",
    "settings.cache.path",
    "settings.cache.allow_partial",
    "settings.cache.pin",
    "settings.cache.dir",
    "settings.cache.limit",
    "settings.cache.retry_for",
    "settings.losses.allow_coarse",
    "settings.cache.verify",
    "settings.student.name",
    "settings.student.gradient_checkpointing",
    "settings.out",
    "settings.evaluation.samples",
    "settings.evaluation.sample_tokens",
    "settings.report_to",
    "settings.saving.",
    "settings.machine.device",
    "settings.machine.threads",
    "settings.machine.portion",
    "settings.machine.ahead",
)
# Settings that --resume-from may change.
STEERS: Final = (
    "settings.optimizer.lr",
    "settings.optimizer.rates.",
    "settings.optimizer.clip",
    "settings.guard.",
    "settings.machine.precision",
)
SHOWN: Final = 5
# Only their product identifies a run.
_STEP_SIZE: Final = ("settings.run.batch_size", "settings.run.accumulate")


def check(out: Path, record: RunRecord, *, overwrite: bool = False, steered: bool = False) -> bool:
    """Refuse a folder of something else, or of another run unless it will be cleared; whether there is a run."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, expected a directory", hint="choose another --out")
    there = [path for path in out.iterdir() if path.name not in (WORK, LOCK)] if out.is_dir() else []
    if there and not (out / RECORD).exists():
        raise ConfigError(
            f"{out} is not empty and has no run of kdpipe", hint="choose another --out; --overwrite clears runs only"
        )
    if there and not overwrite:
        _compare(out, record, steered)
    return bool(there)


def claim(out: Path, record: RunRecord, *, overwrite: bool = False, steered: bool = False) -> list[str]:
    """Create the run in a new or empty folder, or check that it is there; another run is refused, or cleared.

    Returns the settings that a `steered` run changes.
    """
    if check(out, record, overwrite=overwrite, steered=steered):
        if not overwrite:
            sweep(out)
            return replace(out, record) if steered else []
        _clear(out)
    with translate_os_errors("could not create the run folder", out):
        make_dir(out)
        sweep(out)
        publish_file(out, out / RECORD, record.to_json())
    return []


def run_around(path: Path) -> Path | None:
    """The run folder that contains a path, or is it, with links resolved."""
    whole = Path(os.path.realpath(path))
    # A run that is being created or cleared has a lock but no record.
    names = (RECORD, LOCK)
    return next((path for path in (whole, *whole.parents) if any(os.path.isfile(path / name) for name in names)), None)


def differences(stored: RunRecord, new: RunRecord, may_differ: tuple[str, ...] = MAY_DIFFER) -> list[str]:
    """The differences that make two runs, as 'a.b: OLD -> NEW'."""
    first, second = by_dotted_name(stored.model_dump(mode="json")), by_dotted_name(new.model_dump(mode="json"))
    if _step_size(stored) == _step_size(new):
        second |= {name: first[name] for name in _STEP_SIZE}
    return [
        f"{name.removeprefix('settings.')}: {_format(first.get(name))} -> {_format(second.get(name))}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name) and not name.startswith(may_differ)
    ]


def cache_identity(cache: Cache) -> str:
    """Identify a cache: by its id, or if unfinished by its manifest and the parts that are present."""
    if cache.cache_id is not None:
        return cache.cache_id
    numbers = sorted(row.part for row in cache.parts)
    return f"unfinished: {cache.manifest.sha256}, {len(numbers)} parts {sha256_hex(canonical(numbers))}"


def identity(record: RunRecord) -> str:
    """The digest that two records share exactly if they have no differences."""
    values = by_dotted_name(record.model_dump(mode="json"))
    own = {name: value for name, value in values.items() if not name.startswith((*MAY_DIFFER, *_STEP_SIZE))}
    return sha256_hex(canonical(own | {"step_size": _step_size(record)}))


def is_of(record: RunRecord, run: RunRecord) -> bool:
    """Whether a record is of a run, or of an earlier state of it, before --resume-from changed settings."""
    return identity(record) in (identity(run), *run.earlier)


def stored(out: Path, default: RunRecord) -> RunRecord:
    """The record of a folder, or the default if it has none."""
    return _load(out) if (out / RECORD).exists() else default


def replace(out: Path, record: RunRecord) -> list[str]:
    """Replace the record, with its old identity in `earlier`; returns the differences."""
    sweep(out)
    before = _load(out)
    changed = differences(before, record)
    if changed:
        replaced = record.model_copy(update={"earlier": (*before.earlier, identity(before))})
        with translate_os_errors(f"could not replace {RECORD}", out):
            replace_file(out, out / RECORD, replaced.to_json())
    return changed


def _load(out: Path) -> RunRecord:
    try:
        return read_record(RunRecord, (out / RECORD).read_bytes(), f"{out}/{RECORD}")
    except FileDamaged as error:
        raise ConfigError(
            f"{out} has an unreadable record of its run: {error.message}",
            hint="choose another --out, or give --overwrite",
        ) from None


def _compare(out: Path, record: RunRecord, steered: bool) -> None:
    if differing := differences(_load(out), record, (*MAY_DIFFER, *STEERS) if steered else MAY_DIFFER):
        raise ConfigError(f"{out} has a run with other settings: {summarize(differing)}", hint=_advice(differing))


def summarize(differing: list[str]) -> str:
    """The first few differences on one line."""
    more = f" (and {len(differing) - SHOWN} more)" if len(differing) > SHOWN else ""
    return f"{'; '.join(differing[:SHOWN])}{more}"


def _advice(differing: list[str]) -> str:
    if all(f"settings.{difference}".startswith(STEERS) for difference in differing):
        return "resume from a checkpoint with these settings (--resume-from STEP), or choose another --out"
    return "choose another --out, use the original settings, or start over with --overwrite"


def _step_size(record: RunRecord) -> int:
    """Sequences per optimizer step: their split into batches changes rounding only."""
    return record.settings.run.batch_size * record.settings.run.accumulate


def _clear(out: Path) -> None:
    """Remove everything but the lock, the record last, so that an interrupted clearing can be repeated."""
    with translate_os_errors("could not clear the run folder", out):
        for path in sorted(out.iterdir(), key=lambda path: path.name == RECORD):
            if path.name == LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        sync_dir(out)


def _format(value: Any) -> str:
    text = "none" if value in (None, []) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
