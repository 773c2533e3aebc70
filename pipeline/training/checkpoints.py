"""Checkpoints: folders OUT/checkpoints/step-N, written atomically and verified before use.

In: the state of a run and its tensors. Out: a folder with tensors, state.json, run.json and, written last,
checkpoint.json with size and sha256 of each; the newest usable checkpoint, or a chosen one. A step that is saved again,
after a rollback, is step-N.2; nothing is overwritten.
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
from kdpipe.pipeline.training.state_tensors import read_tensors, write_tensors
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
_FOREIGN: Final = "restore the run's own checkpoint, choose another --out, or start over with --overwrite"
_NAME = re.compile(r"step-([0-9]{6,18})(?:\.([0-9]{1,6}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointContents:
    """A run at a step: its record and state, model, optimizer moments and random generators."""

    run: RunRecord
    state: LoopState
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    random: Mapping[str, Tensor]


def save(run: Path, contents: CheckpointContents, keep: int, decay: int | None = None) -> Path:
    """Write a checkpoint and remove others, except the newest `keep`, the best, the rollback snapshot, and the last one
    until the step before the `decay`."""
    with translate_os_errors("could not write a checkpoint", run):
        final = _free_name(run, contents.state.step)
        with work_folder(run, final.name) as work:
            _fill(work, contents)
            publish_dir(work, final)
        with suppress(OSError):
            (run / WORK).rmdir()
        _prune(run, final, keep, contents.state, decay)
    return final


def listed(run: Path) -> list[Path]:
    """The checkpoints of a run, the newest last."""
    folder = run / FOLDER
    paths = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(paths, key=_age)


def of_step(run: Path, step: int, record: RunRecord) -> Path | None:
    """The newest usable checkpoint of a step."""
    paths = (path for path in reversed(listed(run)) if _age(path)[0] == step)
    return next((path for path in paths if problem(path) is None and not foreign(path, record)), None)


def newest_until(run: Path, step: int, record: RunRecord) -> Path | None:
    """The newest usable checkpoint at or before a step."""
    paths = (path for path in reversed(listed(run)) if _age(path)[0] <= step)
    return next((path for path in paths if problem(path) is None and not foreign(path, record)), None)


def step_of(path: Path) -> int:
    """The step of a checkpoint, by its name."""
    return _age(path)[0]


def latest(run: Path, record: RunRecord, warn: Callable[[str], None]) -> Path | None:
    """The newest usable checkpoint, after a warning for each newer one; an error if there are only unusable ones."""
    unusable = []
    for path in reversed(listed(run)):
        reason = problem(path)
        if reason is None:
            differing = foreign(path, record)
            if not differing:
                return path
            reason = f"is of another run: {run_folder.summarize(differing)}"
        unusable.append(f"{FOLDER}/{path.name} {reason}")
        warn(f"skipping a checkpoint: {unusable[-1]}")
    if unusable:
        raise ConfigError(f"{run} has no usable checkpoint: {run_folder.summarize(unusable)}", hint=_FOREIGN)
    return None


def to_resume(run: Path, record: RunRecord, warn: Callable[[str], None]) -> Path | None:
    """The checkpoint to resume from; None if the run was stopped before its first one.

    Step 0 is saved before the first metrics line: a run with lines or a final model has lost its checkpoints.
    """
    if (path := latest(run, record, warn)) is not None:
        return path
    lines = run / METRICS
    traces = [METRICS] if lines.exists() and lines.stat().st_size else []
    traces += [f"{FINAL}/"] if (run / FINAL).exists() else []
    if traces:
        raise ConfigError(f"{run} has {' and '.join(traces)} but no checkpoint", hint=_FOREIGN)
    return None


def foreign(path: Path, record: RunRecord) -> list[str]:
    """Differences between the run of a checkpoint and a run; empty if it is the same."""
    own = read_record(RunRecord, (path / RUN).read_bytes(), RUN)
    return [] if run_folder.is_of(own, record) else run_folder.differences(own, record)


def choose(run: Path, name: str, record: RunRecord, say: Callable[[str], None]) -> Path:
    """The checkpoint with a path, name or step; later ones are removed."""
    present = listed(run)
    matching = [path for path in present if name in _names(path) or Path(name).resolve() == path.resolve()]
    if not matching:
        known = ", ".join(path.name for path in present) or "none"
        raise ConfigError(f"{run} has no checkpoint {name}", hint=f"available: {known}")
    chosen = matching[-1]
    if (reason := problem(chosen)) is not None:
        others = ", ".join(path.name for path in present if path != chosen) or "none"
        raise ConfigError(f"{FOLDER}/{chosen.name} {reason}", hint=f"other checkpoints: {others}")
    if differing := foreign(chosen, record):
        raise ConfigError(f"{FOLDER}/{chosen.name} is of another run: {run_folder.summarize(differing)}", hint=_FOREIGN)
    if later := drop_later(run, chosen):
        names = ", ".join(path.name for path in later)
        say(f"resuming from {chosen.name}; later checkpoints removed: {names}")
    return chosen


def drop_later(run: Path, chosen: Path) -> list[Path]:
    """Remove the checkpoints after one, and return them."""
    later = [path for path in listed(run) if _age(path) > _age(chosen)]
    with translate_os_errors("could not remove a checkpoint", run):
        # The latest first: a run that is killed in between must not resume from a later one.
        _drop(run, later[::-1])
    return later


def load(path: Path) -> CheckpointContents:
    """Read a verified checkpoint."""
    model, optimizer, random = (read_tensors(path / f"{name}.safetensors") for name in TENSORS)
    record = read_record(RunRecord, (path / RUN).read_bytes(), RUN)
    return CheckpointContents(run=record, state=load_state(path), model=model, optimizer=optimizer, random=random)


def load_state(path: Path) -> LoopState:
    """The state in a verified checkpoint."""
    return read_record(LoopState, (path / STATE).read_bytes(), STATE)


def problem(path: Path) -> str | None:
    """Why a checkpoint is unusable ("is damaged: ..."), or None; every byte is read."""
    try:
        data = (path / RECORD).read_bytes()
        if other := _other_version(data):
            return f"was written by another version of kdpipe: {RECORD} has version {other}, expected {VERSION}"
        if (damage := _damage(path, read_record(CheckpointRecord, data, RECORD))) is not None:
            return f"is damaged: {damage}"
        state, run = (path / STATE).read_bytes(), (path / RUN).read_bytes()
    except FileDamaged as error:
        return f"is damaged: {error.message}"
    except OSError as error:
        return f"is damaged: {Path(error.filename or path).name} cannot be read: {error.strerror}"
    try:
        read_record(LoopState, state, STATE)
        read_record(RunRecord, run, RUN)
    except FileDamaged as error:
        # The digest matches: it was written like this.
        return f"was written by another version of kdpipe: {error.message}"
    return None


def _other_version(record: bytes) -> int | None:
    """The version of a record, if it is not the current one."""
    value = parse(record, RECORD)
    version = value.get("version") if isinstance(value, dict) else None
    return version if type(version) is int and version != VERSION else None


def _damage(path: Path, record: CheckpointRecord) -> str | None:
    """The first difference between the files of a checkpoint and its record."""
    if record.files.keys() != FILES:
        return f"{RECORD} lists unexpected files"
    if links := [file.name for file in path.iterdir() if file.is_symlink()]:
        return f"{min(links)} is a link"
    for name, stated in record.files.items():
        if (path / name).stat().st_size != stated.bytes:
            return f"the size of {name} differs from the {stated.bytes:,} bytes in {RECORD}"
        if sha256_file(path / name) != stated.sha256:
            return f"the digest of {name} differs from {RECORD}"
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
    """The next free folder for a step."""
    attempts = [attempt for number, attempt in map(_age, listed(run)) if number == step]
    again = f".{max(attempts) + 1}" if attempts else ""
    return run / FOLDER / f"step-{step:06d}{again}"


def _prune(run: Path, saved: Path, keep: int, state: LoopState, decay: int | None) -> None:
    """Remove old checkpoints, and those of later steps, which are damaged or from before a rollback."""
    present = listed(run)
    before = [path for path in present if _age(path) <= _age(saved)]
    best = [path for path in before if state.best is not None and _age(path)[0] == state.best.step]
    snapshot = [path for path in before if _age(path)[0] == state.snapshot]
    before_decay = [path for path in before if decay is not None and _age(path)[0] <= decay]
    kept = {*before[-keep:], *best[-1:], *snapshot[-1:], *before_decay[-1:]}
    # The latest first: a run that is killed in between must not resume from a later one.
    _drop(run, [path for path in reversed(present) if path not in kept])


def _drop(run: Path, paths: list[Path]) -> None:
    """Remove checkpoints, each atomically."""
    for path in paths:
        with work_folder(run, path.name) as work:
            path.rename(work / path.name)
            sync_dir(path.parent)
    with suppress(OSError):
        (run / WORK).rmdir()


def _age(path: Path) -> tuple[int, int]:
    """The step of a checkpoint, and its number among those of the step."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 1)


def _names(path: Path) -> set[str]:
    return {path.name, f"{FOLDER}/{path.name}", str(_age(path)[0])}
