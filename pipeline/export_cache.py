"""Export a cache as Parquet files for other tools: `kdpipe cache export`.

In: a cache, a format, a folder. Out: one Parquet file per part, named by its split as `datasets` expects, and a report
that lists what the format cannot represent. Files are written under a temporary name and contain the ids of their cache
and part, so that re-running the command resumes; other files are never replaced.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from kdpipe.cache.durable.files import move_if_free, new_file, sweep, sync_dir, translate_os_errors, work_folder
from kdpipe.cache.durable.lock import LOCK, locked
from kdpipe.cache.layout import WORK
from kdpipe.cache.opening import open_cache
from kdpipe.cache.parts.arrow_files import lists_writer, parquet_notes
from kdpipe.cache.parts.index import IndexRow
from kdpipe.cache.reader import Cache
from kdpipe.cache.reshape.sources import is_inside
from kdpipe.cache.stores.addresses import is_url, local_path
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.pipeline.interop.export_tables import Row, column_types, left_out, table_rows
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.interop import ExportSettings, TablesReport
from kdpipe.schemas.progress import Progress, Task, TaskUpdate, running

# Tokens per row group: 40 MB in memory at a hundred ids per token.
ROWS_PER_GROUP = 1 << 15
Notes = Mapping[str, str]


def export_cache(settings: ExportSettings, progress: Progress, retry_policy: RetryPolicy | None = None) -> TablesReport:
    """Export a cache, or resume an interrupted export."""
    started = time.perf_counter()
    cache = open_cache(settings.cache, settings.split, retry_policy=retry_policy)
    _check_kind(settings, cache)
    _check_place(settings, cache)
    folder = Path(local_path(settings.out))
    with locked(folder, progress.message):
        try:
            return _export_into(folder, settings, cache, progress, started)
        finally:
            with suppress(OSError):
                (folder / WORK).rmdir()


def _export_into(
    folder: Path, settings: ExportSettings, cache: Cache, progress: Progress, started: float
) -> TablesReport:
    """Write the missing files into a locked folder."""
    files = {f"{row.split}-{row.part:05d}.parquet": row for row in cache.parts}
    done = _existing_files(folder, {name: _notes(settings, cache, row) for name, row in files.items()})
    first = n_rows = 0
    n_done = len(done)
    with running(progress, Task.of_parts("export", len(files), n_done)):
        for name, row in files.items():
            if name not in done:
                _write(folder / name, settings, cache, row, first)
                n_done += 1
                progress.update(TaskUpdate(done=n_done))
            first += row.n_sequences
            n_rows += parquet_notes(str(folder / name))[1]
    return TablesReport(
        folder=settings.out,
        form=settings.form,
        cache_id=str(cache.cache_id),
        files=len(files),
        files_made=len(files) - len(done),
        rows=n_rows,
        positions=cache.n_positions,
        bytes=sum((folder / name).stat().st_size for name in files),
        left_out=left_out(settings.form, cache.manifest),
        seconds=time.perf_counter() - started,
    )


def _check_kind(settings: ExportSettings, cache: Cache) -> None:
    keep = cache.manifest.targets.keep
    if keep.complete or (not keep.has_teacher and settings.form == "axolotl"):
        raise Incompatible(
            f"{settings.cache} has targets of kind {keep.kind} (no ids), which --to {settings.form} cannot represent",
            hint="convert it first: kdpipe cache requantize --targets threshold"
            if keep.complete
            else "export a cache made with other --targets",
        )


def _check_place(settings: ExportSettings, cache: Cache) -> None:
    if is_url(settings.out):
        raise ConfigError(
            f"--out {settings.out} is a URL; exports write to a local directory", hint="give a local directory"
        )
    if is_inside(settings.out, cache.url):
        raise ConfigError(f"--out {settings.out} is inside the cache {cache.url}", hint="choose another directory")


def _notes(settings: ExportSettings, cache: Cache, row: IndexRow) -> dict[str, str]:
    """The metadata of a file that identifies its cache and part."""
    return {"kdpipe.form": settings.form, "kdpipe.cache_id": str(cache.cache_id), "kdpipe.part": row.sha256}


def _existing_files(folder: Path, expected: Mapping[str, Notes]) -> set[str]:
    """The files of this export that exist already; a folder with other files is refused."""
    with translate_os_errors("listing the folder", folder):
        sweep(folder)
        names = sorted(path.name for path in folder.iterdir() if path.name not in (WORK, LOCK))
    for name in names:
        _check_own(folder / name, expected.get(name))
    return set(names)


def _check_own(path: Path, expected: Notes | None) -> None:
    """Refuse a file of another cache, format or program."""
    notes = parquet_notes(str(path))[0]
    if expected is None or any(notes.get(key) != value for key, value in expected.items()):
        raise ConfigError(
            f"{path.parent} contains {path.name}, which is not part of this export",
            hint="choose a new or empty directory",
        )


def _write(path: Path, settings: ExportSettings, cache: Cache, row: IndexRow, first: int) -> int:
    """Write one part as a file; return its size."""
    types, notes = column_types(settings.form, cache.manifest), _notes(settings, cache, row)
    with translate_os_errors(f"writing {path.name}", path.parent), work_folder(path.parent, path.name) as work:
        with new_file(work / path.name) as file, lists_writer(file, types, notes) as write:
            for group in _groups(settings, cache, range(first, first + row.n_sequences)):
                write(group)
        is_first = move_if_free(work / path.name, path)
        sync_dir(path.parent)
    if not is_first:
        _check_own(path, notes)
    return path.stat().st_size


def _groups(settings: ExportSettings, cache: Cache, numbers: range) -> Iterator[list[Row]]:
    """The table rows of some sequences, in row groups."""
    group: list[Row] = []
    n_tokens = 0
    for number in numbers:
        rows = cache.rows(number, hidden=False)
        group += table_rows(settings.form, rows, cache.manifest)
        n_tokens += len(rows)
        if n_tokens >= ROWS_PER_GROUP:
            yield group
            group, n_tokens = [], 0
    if group:
        yield group
