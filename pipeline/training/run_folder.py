"""The folder of a run: begun, found again, refused when it is another run's, or cleared when that is asked.

In: OUT and which run this is. Out: OUT/run.json.
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
# A run goes on with other values of these: where things lie (what they are is compared by content), who watches, what
# is kept, and how a machine goes about it.
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
    "settings.report_to",
    "settings.saving.",
    "settings.machine.device",
    "settings.machine.threads",
    "settings.machine.portion",
    "settings.machine.ahead",
)
# What a run that went wrong may be steered by, from a checkpoint that is named.
STEERS: Final = (
    "settings.optimizer.lr",
    "settings.optimizer.rates.",
    "settings.optimizer.clip",
    "settings.guard.",
    "settings.machine.precision",
)
SHOWN: Final = 5
# Only their product makes another run.
_STEP_SIZE: Final = ("settings.run.batch_size", "settings.run.accumulate")


def check(out: Path, asked: RunRecord, *, overwrite: bool = False, steered: bool = False) -> bool:
    """Refuse a folder of something else, or of another run unless that is to be cleared; whether there is a run."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, and a run is a folder", hint="give --out a new folder")
    there = [path for path in out.iterdir() if path.name not in (WORK, LOCK)] if out.is_dir() else []
    if there and not (out / RECORD).exists():
        raise ConfigError(
            f"{out} is not empty, and no run of kdpipe", hint="give --out a new folder; --overwrite clears runs only"
        )
    if there and not overwrite:
        _compare(out, asked, steered)
    return bool(there)


def claim(out: Path, asked: RunRecord, *, overwrite: bool = False, steered: bool = False) -> list[str]:
    """Begin a run in a new or empty folder, or find it there; a folder of another run is refused, or cleared.

    A run that is `steered` goes on with other rates, another guard or precision: which, is the answer.
    """
    if check(out, asked, overwrite=overwrite, steered=steered):
        if not overwrite:
            sweep(out)
            return replace(out, asked) if steered else []
        _clear(out)
    with translate_os_errors("a run could not be begun", out):
        make_dir(out)
        sweep(out)
        publish_file(out, out / RECORD, asked.to_json())
    return []


def run_around(path: Path) -> Path | None:
    """The run folder that a path is or is inside, links resolved; None outside of runs."""
    whole = Path(os.path.realpath(path))
    # A run that begins, or is being cleared, has a lock before it has a record.
    names = (RECORD, LOCK)
    return next((each for each in (whole, *whole.parents) if any(os.path.isfile(each / name) for name in names)), None)


def differences(one: RunRecord, other: RunRecord, may_differ: tuple[str, ...] = MAY_DIFFER) -> list[str]:
    """What two runs differ in that makes them two, as 'a.b: this there, that here'."""
    first, second = by_dotted_name(one.model_dump(mode="json")), by_dotted_name(other.model_dump(mode="json"))
    if _step_size(one) == _step_size(other):
        second |= {name: first[name] for name in _STEP_SIZE}
    return [
        f"{name.removeprefix('settings.')}: {_shown(first.get(name))} there, {_shown(second.get(name))} here"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name) and not name.startswith(may_differ)
    ]


def cache_identity(cache: Cache) -> str:
    """Which cache this is; of an unfinished one what is known: what it is made from, and the parts that are there."""
    if cache.cache_id is not None:
        return cache.cache_id
    numbers = sorted(row.part for row in cache.parts)
    return f"unfinished: {cache.manifest.sha256}, {len(numbers)} parts {sha256_hex(canonical(numbers))}"


def identity(record: RunRecord) -> str:
    """The digest of what makes a run this one: two runs have the same if, and only if, they have no differences."""
    values = by_dotted_name(record.model_dump(mode="json"))
    own = {name: value for name, value in values.items() if not name.startswith((*MAY_DIFFER, *_STEP_SIZE))}
    return sha256_hex(canonical(own | {"step_size": _step_size(record)}))


def is_of(record: RunRecord, run: RunRecord) -> bool:
    """Whether a record is of a run, as it is or as it was before it was steered."""
    return identity(record) in (identity(run), *run.earlier)


def stored(out: Path, asked: RunRecord) -> RunRecord:
    """Which run a folder says it is; the one that is asked for where it says nothing."""
    return _found(out) if (out / RECORD).exists() else asked


def replace(out: Path, asked: RunRecord) -> list[str]:
    """Record what a run goes on with, with what it was before in `earlier`; what differs is the answer."""
    sweep(out)
    found = _found(out)
    changed = differences(found, asked)
    if changed:
        record = asked.model_copy(update={"earlier": (*found.earlier, identity(found))})
        with translate_os_errors("the record of a run could not be replaced", out):
            replace_file(out, out / RECORD, record.to_json())
    return changed


def _found(out: Path) -> RunRecord:
    try:
        return read_record(RunRecord, (out / RECORD).read_bytes(), f"{out}/{RECORD}")
    except FileDamaged as error:
        raise ConfigError(
            f"{out} is of a run that cannot be told: {error.message}", hint="give --out a new folder, or --overwrite"
        ) from None


def _compare(out: Path, asked: RunRecord, steered: bool) -> None:
    found = _found(out)
    if differing := differences(found, asked, (*MAY_DIFFER, *STEERS) if steered else MAY_DIFFER):
        raise ConfigError(f"{out} holds another run: {shown(differing)}", hint=_other_ways(differing))


def shown(differing: list[str]) -> str:
    """The first few differences in a line."""
    more = f" (and {len(differing) - SHOWN} more)" if len(differing) > SHOWN else ""
    return f"{'; '.join(differing[:SHOWN])}{more}"


def _other_ways(differing: list[str]) -> str:
    if all(f"settings.{one}".startswith(STEERS) for one in differing):
        return "name a checkpoint to go on from with these (--resume-from STEP), or give --out a new folder"
    return "give --out a new folder, the settings it began with, or --overwrite to begin anew"


def _step_size(record: RunRecord) -> int:
    """Sequences of an optimizer step: how they are split into batches changes no more than rounding."""
    return record.settings.run.batch_size * record.settings.run.accumulate


def _clear(out: Path) -> None:
    """Remove everything but the lock, which others must find at every moment.

    What says that this is a run goes last, so that a clearing that was killed can be repeated.
    """
    with translate_os_errors("a run could not be cleared", out):
        for path in sorted(out.iterdir(), key=lambda path: path.name == RECORD):
            if path.name == LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        sync_dir(out)


def _shown(value: Any) -> str:
    text = "nothing" if value in (None, []) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
