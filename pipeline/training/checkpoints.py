"""Checkpoints: folders OUT/checkpoints/step-N that are whole or not there, and are checked before they are believed.

In: the state of a run and its tensors. Out: a folder with tensors, state.json, run.json (whose it is) and, last,
checkpoint.json with size and sha256 of each; the newest good one of the run, or the one asked for. A step that is saved
again (after a rollback) is step-N.2; nothing is overwritten.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from kdpipe.cache.durable.files import new_file, publish_dir, sync_dir, translate_os_errors, work_folder
from kdpipe.cache.layout import WORK
from kdpipe.pipeline.evaluation.stored import FINAL
from kdpipe.pipeline.training import run_folder
from kdpipe.pipeline.training.metrics import FILE as METRICS
from kdpipe.pipeline.training.tensor_files import read_tensors, write_tensors
from kdpipe.schemas.checkpoint import CheckpointRecord, LoopState, RunRecord
from kdpipe.schemas.errors import ConfigError, FileDamaged
from kdpipe.schemas.manifest import FileRecord
from kdpipe.schemas.records import read_record
from kdpipe.schemas.strict_json import parse, sha256_file, sha256_hex

FOLDER: Final = "checkpoints"
RECORD: Final = "checkpoint.json"
STATE: Final = "state.json"
RUN: Final = run_folder.RECORD
TENSORS: Final = ("model", "optimizer", "random")
FILES: Final = frozenset({STATE, RUN, *(f"{name}.safetensors" for name in TENSORS)})
VERSION: Final = 2
_NOT_OWN: Final = "put the run's own checkpoint back, or give --out a new folder, or --overwrite to start over"
_NAME = re.compile(r"step-([0-9]{6,18})(?:\.([0-9]{1,6}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointContents:
    """A run at a step: which it is, where it is, what is learnt, the optimizer's moments, the random generators."""

    run: RunRecord
    state: LoopState
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    random: Mapping[str, Tensor]


def save(run: Path, contents: CheckpointContents, keep: int, fall: int | None = None) -> Path:
    """Write a checkpoint; then of those there only the newest `keep`, the best, the one to go back to, and the last one
    before the step of a `fall` of the learning rate stay."""
    with translate_os_errors("a checkpoint could not be written", run):
        final = _free_name(run, contents.state.step)
        with work_folder(run, final.name) as work:
            _fill(work, contents)
            publish_dir(work, final)
        with suppress(OSError):
            (run / WORK).rmdir()
        _prune(run, final, keep, contents.state, fall)
    return final


def listed(run: Path) -> list[Path]:
    """The checkpoints of a run by name, the newest last."""
    folder = run / FOLDER
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=_age)


def of_step(run: Path, step: int, record: RunRecord) -> Path | None:
    """The checkpoint of a step of a run, the newest whole one if it was saved again."""
    there = (path for path in reversed(listed(run)) if _age(path)[0] == step)
    return next((path for path in there if problem(path) is None and not foreign(path, record)), None)


def newest_until(run: Path, step: int, record: RunRecord) -> Path | None:
    """The newest whole checkpoint of a run at a step or before it."""
    there = (path for path in reversed(listed(run)) if _age(path)[0] <= step)
    return next((path for path in there if problem(path) is None and not foreign(path, record)), None)


def step_of(path: Path) -> int:
    """The step of a checkpoint, by its name."""
    return _age(path)[0]


def latest(run: Path, record: RunRecord, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is usable: whole and of this run. Each newer one is skipped with a warning; None if
    the run has no checkpoints, an error if it has some and none is usable."""
    unusable = []
    for path in reversed(listed(run)):
        reason = problem(path)
        if reason is None:
            differing = foreign(path, record)
            if not differing:
                return path
            reason = f"is of another run: {run_folder.shown(differing)}"
        unusable.append(f"{FOLDER}/{path.name} {reason}")
        warn(f"skipped: {unusable[-1]}")
    if unusable:
        raise ConfigError(f"{run} has no usable checkpoint: {run_folder.shown(unusable)}", hint=_NOT_OWN)
    return None


def to_resume(run: Path, record: RunRecord, warn: Callable[[str], None]) -> Path | None:
    """The checkpoint that a run resumes from; None for a run that ended before its first one was saved.

    A run saves step 0 before it writes a line: with lines or a final model, its checkpoints have been lost.
    """
    if (path := latest(run, record, warn)) is not None:
        return path
    lines = run / METRICS
    traces = [METRICS] if lines.exists() and lines.stat().st_size else []
    traces += [f"{FINAL}/"] if (run / FINAL).exists() else []
    if traces:
        raise ConfigError(f"{run} has no checkpoint, but the {' and '.join(traces)} of a run", hint=_NOT_OWN)
    return None


def foreign(path: Path, record: RunRecord) -> list[str]:
    """What the run of a whole checkpoint differs in from a run; nothing if it is that run's."""
    theirs = read_record(RunRecord, (path / RUN).read_bytes(), RUN)
    return [] if run_folder.is_of(theirs, record) else run_folder.differences(theirs, record)


def asked_for(run: Path, name: str, record: RunRecord, say: Callable[[str], None]) -> Path:
    """The checkpoint of a run that a person names by its path, its name or its step; later ones then go, they are of a
    course that is left, and are named."""
    there = listed(run)
    matching = [path for path in there if name in _names(path) or Path(name).resolve() == path.resolve()]
    if not matching:
        known = ", ".join(path.name for path in there) or "none"
        raise ConfigError(f"{run} has no checkpoint {name}", hint=f"there: {known}")
    chosen = matching[-1]
    if (wrong := problem(chosen)) is not None:
        others = ", ".join(path.name for path in there if path != chosen) or "none"
        raise ConfigError(f"{FOLDER}/{chosen.name} {wrong}", hint=f"the others there: {others}")
    if differing := foreign(chosen, record):
        told = run_folder.shown(differing)
        raise ConfigError(f"{FOLDER}/{chosen.name} is of another run: {told}", hint=_NOT_OWN)
    if later := drop_later(run, chosen):
        names = ", ".join(path.name for path in later)
        say(f"goes on from {chosen.name}; removed, as of a course that is left: {names}")
    return chosen


def drop_later(run: Path, chosen: Path) -> list[Path]:
    """Remove the checkpoints behind one; which they were."""
    later = [path for path in listed(run) if _age(path) > _age(chosen)]
    with translate_os_errors("a checkpoint could not be removed", run):
        # The latest go first: a run that is killed between two of them must not find one of the course that was left.
        _drop(run, later[::-1])
    return later


def load(path: Path) -> CheckpointContents:
    """Read a checkpoint that `latest` or `asked_for` gave."""
    model, optimizer, random = (read_tensors(path / f"{name}.safetensors") for name in TENSORS)
    record = read_record(RunRecord, (path / RUN).read_bytes(), RUN)
    return CheckpointContents(run=record, state=load_state(path), model=model, optimizer=optimizer, random=random)


def load_state(path: Path) -> LoopState:
    """Where a run was at a checkpoint that `latest` or `asked_for` gave."""
    return read_record(LoopState, (path / STATE).read_bytes(), STATE)


def problem(path: Path) -> str | None:
    """Why a checkpoint cannot be used ("is broken: ..."), None if it is whole: every byte is read."""
    try:
        data = (path / RECORD).read_bytes()
        if other := _other_version(data):
            return f"was written by another version of kdpipe: {RECORD} has version {other}, expected {VERSION}"
        if (wrong := _damage(path, read_record(CheckpointRecord, data, RECORD))) is not None:
            return f"is broken: {wrong}"
        state, run = (path / STATE).read_bytes(), (path / RUN).read_bytes()
    except FileDamaged as error:
        return f"is broken: {error.message}"
    except OSError as error:
        return f"is broken: {Path(error.filename or path).name} cannot be read: {error.strerror}"
    try:
        read_record(LoopState, state, STATE)
        read_record(RunRecord, run, RUN)
    except FileDamaged as error:
        # Its digest is right: it was written like this.
        return f"was written by another version of kdpipe: {error.message}"
    return None


def _other_version(record: bytes) -> int | None:
    """The version of a record, if that is another one than this kdpipe writes."""
    value = parse(record, RECORD)
    version = value.get("version") if isinstance(value, dict) else None
    return version if type(version) is int and version != VERSION else None


def _damage(path: Path, record: CheckpointRecord) -> str | None:
    """What differs between the files of a checkpoint and its record."""
    if record.files.keys() != FILES:
        return f"{RECORD} names other files than a checkpoint has"
    if odd := [file.name for file in path.iterdir() if file.is_symlink()]:
        return f"{min(odd)} is a link"
    for name, stated in record.files.items():
        if (path / name).stat().st_size != stated.bytes:
            return f"{name} is not of the {stated.bytes:,} bytes that {RECORD} states"
        if sha256_file(path / name) != stated.sha256:
            return f"the digest of {name} is not the one that {RECORD} states"
    return None


def _fill(work: Path, contents: CheckpointContents) -> None:
    files = {}
    for name, data in ((STATE, contents.state.to_json()), (RUN, contents.run.to_json())):
        with new_file(work / name) as file:
            file.write(data)
        files[name] = FileRecord(bytes=len(data), sha256=sha256_hex(data))
    for name in TENSORS:
        path = work / f"{name}.safetensors"
        write_tensors(path, getattr(contents, name))
        files[path.name] = FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
    with new_file(work / RECORD) as file:
        file.write(CheckpointRecord(version=VERSION, files=files).to_json())


def _free_name(run: Path, step: int) -> Path:
    """The folder for a step: behind all of the same step that are there, broken ones too."""
    attempts = [attempt for number, attempt in map(_age, listed(run)) if number == step]
    again = f".{max(attempts) + 1}" if attempts else ""
    return run / FOLDER / f"step-{step:06d}{again}"


def _prune(run: Path, saved: Path, keep: int, state: LoopState, fall: int | None) -> None:
    """Remove the ones before, and those of later steps: they are broken, or of a course that was left."""
    there = listed(run)
    behind = [path for path in there if _age(path) <= _age(saved)]
    best = [path for path in behind if state.best is not None and _age(path)[0] == state.best.step]
    snapshot = [path for path in behind if _age(path)[0] == state.snapshot]
    before_fall = [path for path in behind if fall is not None and _age(path)[0] <= fall]
    kept = {*behind[-keep:], *best[-1:], *snapshot[-1:], *before_fall[-1:]}
    # The latest go first: a run that is killed between two of them must not find one of the course that was left.
    _drop(run, [path for path in reversed(there) if path not in kept])


def _drop(run: Path, paths: list[Path]) -> None:
    """Remove checkpoints: each goes in one step, so that none is left half."""
    for path in paths:
        with work_folder(run, path.name) as work:
            path.rename(work / path.name)
            sync_dir(path.parent)
    with suppress(OSError):
        (run / WORK).rmdir()


def _age(path: Path) -> tuple[int, int]:
    """The step of a checkpoint, and which of those of its step it is."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 1)


def _names(path: Path) -> set[str]:
    return {path.name, f"{FOLDER}/{path.name}", str(_age(path)[0])}
