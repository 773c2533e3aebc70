"""Finished runs: the same command returns the stored report at once.

In: the folder of a run, settings as given. Out: the report of the finished run, or None; what is wrong with final/.
Neither torch nor transformers is imported here: importing them takes longer than all checks.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Final, assert_never

from kdpipe.cache.durable.files import replace_file, translate_os_errors
from kdpipe.cache.reader import Cache
from kdpipe.pipeline.batches.run_cache import open_run_cache
from kdpipe.pipeline.models.folders import FINAL, weights_sha256
from kdpipe.pipeline.training import run_folder
from kdpipe.schemas.checkpoint import RunRecord
from kdpipe.schemas.choices import StudentSource
from kdpipe.schemas.errors import ConfigError, FileDamaged
from kdpipe.schemas.finished_run import FinishedRun
from kdpipe.schemas.manifest import FileRecord
from kdpipe.schemas.progress import Progress, Task, running
from kdpipe.schemas.records import read_record
from kdpipe.schemas.run_report import TrainReport
from kdpipe.schemas.strict_json import sha256_file
from kdpipe.schemas.train_settings import TrainOptions, TrainSettings

RECORD: Final = "finished.json"
VERSION: Final = 1
# Without `saving.final`: final/ has either the best student or the last.
_MAY_DIFFER: Final = (
    *(name for name in run_folder.MAY_DIFFER if name != "settings.saving."),
    "settings.saving.every",
    "settings.saving.keep",
)


def finished_report(
    folder: Path, settings: TrainSettings, options: TrainOptions, progress: Progress
) -> TrainReport | None:
    """The report of the run of these settings if it is finished, else None; the folder is locked."""
    if options.overwrite or options.dry_run or options.resume_from is not None:
        return None
    record = load(folder)
    if record is None or not _is_command_of(record, folder, settings, progress):
        return None
    with running(progress, Task(name="check saved student")):
        is_whole = problem(folder, record) is None
    if not is_whole:
        return None
    progress.message(f"{folder} is finished: {record.report.steps:,} of {record.report.steps_planned:,} steps are done")
    return relocated(record.report, folder)


def relocated(report: TrainReport, folder: Path) -> TrainReport:
    """The report of a run whose folder may have been moved."""
    return report.model_copy(update={"run": str(folder), "final": str(folder / FINAL)})


def load(folder: Path) -> FinishedRun | None:
    """The record of a finished run; None if it is not finished or another version wrote the record."""
    try:
        record = read_record(FinishedRun, (folder / RECORD).read_bytes(), RECORD)
        is_current = record.run_sha256 == sha256_file(folder / run_folder.RECORD)
    except (OSError, FileDamaged):
        return None
    return record if is_current and record.kdpipe == version("kdpipe") else None


def problem(folder: Path, record: FinishedRun) -> str | None:
    """What is wrong with final/; every byte is read."""
    for name, stated in record.files.items():
        path = folder / FINAL / name
        try:
            if path.stat().st_size != stated.bytes or sha256_file(path) != stated.sha256:
                return f"{FINAL}/{name} was modified since it was saved"
        except OSError as error:
            return f"{FINAL}/{name} cannot be read: {error.strerror}"
    return None


def save(folder: Path, command: RunRecord, source: StudentSource, step: int, report: TrainReport) -> None:
    """Record that a run is finished, after everything else is written."""
    final = folder / FINAL
    with translate_os_errors("could not record that the run is finished", folder):
        paths = [path for path in sorted(final.rglob("*")) if path.is_file()]
        files = {
            path.relative_to(final).as_posix(): FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
            for path in paths
        }
        record = FinishedRun(
            version=VERSION,
            kdpipe=version("kdpipe"),
            command=command,
            source=source,
            run_sha256=sha256_file(folder / run_folder.RECORD),
            step=step,
            files=files,
            report=report,
        )
        replace_file(folder, folder / RECORD, record.to_json())


def remove(folder: Path) -> None:
    """Remove the record before a run trains further."""
    with translate_os_errors(f"could not remove {RECORD}", folder):
        (folder / RECORD).unlink(missing_ok=True)


def command_record(settings: TrainSettings, source: StudentSource, cache: Cache) -> RunRecord | None:
    """Settings as given, with cache and student by content; None if the student is not of this source."""
    student = _student(settings.student.name or "", source)
    if student is None:
        return None
    return RunRecord(settings=settings, cache_id=run_folder.cache_identity(cache), student=student)


def _is_command_of(record: FinishedRun, folder: Path, settings: TrainSettings, progress: Progress) -> bool:
    """Whether settings are those given to the run, or those with its defaults filled in."""
    command = command_record(settings, record.source, open_run_cache(settings.cache, progress, "train"))
    if command is None:
        return False
    filled_in = record.command.model_copy(update={"settings": run_folder.stored(folder, record.command).settings})
    return any(not run_folder.differences(known, command, _MAY_DIFFER) for known in (record.command, filled_in))


def _student(name: str, source: StudentSource) -> str | None:
    """Identify a student by its name and source, without transformers."""
    path = Path(name).expanduser()
    match source:
        case "preset":
            return name
        case "hub":
            return None if path.exists() else name
        case "config":
            return sha256_file(path) if path.is_file() else None
        case "folder":
            try:
                return weights_sha256(path) if path.is_dir() else None
            except ConfigError:
                return None
        case _:
            assert_never(source)
