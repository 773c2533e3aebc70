"""A finished run, recognized from its files alone: the same command gets the same report again.

In: the folder of a run, settings as they were given. Out: the report of the run that has ended, or None; what is wrong
with final/. Neither torch nor transformers is imported here: both take longer than everything that is checked.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Final, assert_never

from kdpipe.cache.durable.files import replace_file, translate_os_errors
from kdpipe.cache.durable.lock import locked
from kdpipe.cache.reader import Cache
from kdpipe.pipeline.batches.run_cache import opened
from kdpipe.pipeline.models.folders import FINAL, weights_sha256
from kdpipe.pipeline.training import run_folder
from kdpipe.pipeline.watch import Listener
from kdpipe.schemas.checkpoint import RunRecord
from kdpipe.schemas.choices import StudentSource
from kdpipe.schemas.errors import ConfigError, FileDamaged
from kdpipe.schemas.finished_run import FinishedRun
from kdpipe.schemas.manifest import FileRecord
from kdpipe.schemas.records import read_record
from kdpipe.schemas.run_report import TrainReport
from kdpipe.schemas.strict_json import sha256_file
from kdpipe.schemas.train_settings import TrainOptions, TrainSettings

RECORD: Final = "finished.json"
VERSION: Final = 1
# Unlike what makes another run: final/ may hold the best student or the last.
_MAY_DIFFER: Final = (
    *(name for name in run_folder.MAY_DIFFER if name != "settings.saving."),
    "settings.saving.every",
    "settings.saving.keep",
)


def report_if_finished(settings: TrainSettings, options: TrainOptions, watch: Listener) -> TrainReport | None:
    """The report of a run that has ended, where nothing is left to do for its command; None otherwise."""
    if settings.out is None or not (Path(settings.out) / RECORD).is_file():
        return None
    with locked(Path(settings.out), watch.say):
        return report_of(Path(settings.out), settings, options, watch)


def report_of(folder: Path, settings: TrainSettings, options: TrainOptions, watch: Listener) -> TrainReport | None:
    """The same for a folder that is locked."""
    if options.overwrite or options.dry_run or options.resume_from is not None:
        return None
    record = load(folder)
    if record is None or not _is_command_of(record, folder, settings, watch) or problem(folder, record) is not None:
        return None
    watch.say(f"{folder} is finished: {record.report.steps:,} of {record.report.steps_planned:,} steps are done")
    return placed(record.report, folder)


def placed(report: TrainReport, folder: Path) -> TrainReport:
    """The report of a run whose folder may have been moved."""
    return report.model_copy(update={"run": str(folder), "final": str(folder / FINAL)})


def load(folder: Path) -> FinishedRun | None:
    """What the folder of a run records of its end; None where it has not ended or another version wrote the record."""
    try:
        record = read_record(FinishedRun, (folder / RECORD).read_bytes(), RECORD)
        is_current = record.run_sha256 == sha256_file(folder / run_folder.RECORD)
    except (OSError, FileDamaged):
        return None
    return record if is_current and record.kdpipe == version("kdpipe") else None


def problem(folder: Path, record: FinishedRun) -> str | None:
    """What is wrong with final/, every byte of which is read."""
    for name, stated in record.files.items():
        path = folder / FINAL / name
        try:
            if path.stat().st_size != stated.bytes or sha256_file(path) != stated.sha256:
                return f"{FINAL}/{name} is not the file that was saved"
        except OSError as error:
            return f"{FINAL}/{name} cannot be read: {error.strerror}"
    return None


def save(folder: Path, asked: RunRecord, source: StudentSource, step: int, report: TrainReport) -> None:
    """Record that a run has ended, once everything else of it is written."""
    final = folder / FINAL
    with translate_os_errors("the end of the run could not be recorded", folder):
        paths = [path for path in sorted(final.rglob("*")) if path.is_file()]
        files = {
            path.relative_to(final).as_posix(): FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
            for path in paths
        }
        record = FinishedRun(
            version=VERSION,
            kdpipe=version("kdpipe"),
            asked=asked,
            source=source,
            run_sha256=sha256_file(folder / run_folder.RECORD),
            step=step,
            files=files,
            report=report,
        )
        replace_file(folder, folder / RECORD, record.to_json())


def remove(folder: Path) -> None:
    """A run that takes steps again has not ended."""
    with translate_os_errors("the record of the run's end could not be removed", folder):
        (folder / RECORD).unlink(missing_ok=True)


def as_asked(settings: TrainSettings, source: StudentSource, cache: Cache) -> RunRecord | None:
    """A command as it was given, with cache and student by content; None where its student is not of that source."""
    student = _student(settings.student.name or "", source)
    if student is None:
        return None
    return RunRecord(settings=settings, cache_id=run_folder.cache_identity(cache), student=student)


def _is_command_of(record: FinishedRun, folder: Path, settings: TrainSettings, watch: Listener) -> bool:
    """Whether settings are those that a run was given, or those that it filled in."""
    asked = as_asked(settings, record.source, opened(settings.cache, watch, "train"))
    if asked is None:
        return False
    filled_in = record.asked.model_copy(update={"settings": run_folder.stored(folder, record.asked).settings})
    return any(not run_folder.differences(one, asked, _MAY_DIFFER) for one in (record.asked, filled_in))


def _student(name: str, source: StudentSource) -> str | None:
    """What a student's name stands for, found out without transformers."""
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
