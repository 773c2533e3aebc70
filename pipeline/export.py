"""`kdpipe export`: a run's student as a Hugging Face model folder, in one data type, with adapters merged.

In: a run, or a folder that a run saved. Out: a model folder and an `ExportReport`. Paths are checked before torch is
imported.
"""

import os
from contextlib import ExitStack
from pathlib import Path

from kdpipe.cache.durable.lock import Say, check_free, locked
from kdpipe.pipeline.evaluation.stored import base_model_of
from kdpipe.pipeline.models.folders import ADAPTER, FINAL, check_model_name
from kdpipe.pipeline.training.run_folder import run_around
from kdpipe.schemas.choices import DtypeName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.export_report import ExportReport
from kdpipe.schemas.progress import Progress, SilentProgress, Task, running


def export(
    run: Path,
    out: Path | None,
    dtype: DtypeName | None,
    *,
    trusted: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Export into a new folder, with runs locked that are read or written."""
    if not run.is_dir():
        raise ConfigError(f"no such run: {run}", hint="give the --out directory of kdpipe train")
    folder = run / "export" if out is None else out
    notes: list[str] = []
    with ExitStack() as locks:
        _lock_runs(run, folder, locks, notes.append)
        source = _source(run)
        base = base_model_of(str(source))
        check_model_name(base.name or "")
        locks.enter_context(locked(folder, notes.append, beside=True))
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} already exists", hint="delete it, or use another --out")
        shown = progress or SilentProgress()
        with running(shown, Task(name="load torch")):
            from kdpipe.pipeline.students.export_folder import export_student
        report = export_student(source, base, folder, dtype, trusted, shown)
    return report.model_copy(update={"notes": (*notes, *report.notes)})


def _lock_runs(run: Path, folder: Path, locks: ExitStack, say: Say) -> None:
    """Lock the exported run and the run that contains the output, against concurrent training."""
    source, target = run_around(run), run_around(folder)
    for path in sorted({path for path in (source, target) if path is not None}):
        if path != target and not os.access(path, os.W_OK):
            check_free(path)
            say(f"{path} is read-only and was not locked: do not train there during the export")
        else:
            locks.enter_context(locked(path, say))


def _source(run: Path) -> Path:
    """The folder with a run's saved student, or that folder itself."""
    for folder in (run / FINAL, run):
        if (folder / "config.json").is_file() or (folder / ADAPTER).is_file():
            return folder
    raise ConfigError(f"{run} has no student yet: no {FINAL}", hint="run kdpipe train again to finish it")
