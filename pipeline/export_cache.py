"""Files for other tools from a cache: `kdpipe cache export`.

In: a cache, a form, a folder. Out: a Parquet file for each part, named by its split as `datasets` finds splits, and a
report that says what the form has no place for. A file appears under its name when it is whole and says of which cache
and part it is, so that the same command goes on; it never replaces another.
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
from kdpipe.pipeline.watch import Watch
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.interop import ExportSettings, TablesReport

# Tokens of a row group: with a hundred ids a token some 40 MB in memory.
ROWS_A_GROUP = 1 << 15
Notes = Mapping[str, str]


def export_cache(settings: ExportSettings, watch: Watch, retry_policy: RetryPolicy | None = None) -> TablesReport:
    """Do what is left to do of an export."""
    started = time.perf_counter()
    cache = open_cache(settings.cache, settings.split, retry_policy=retry_policy)
    _check_kind(settings, cache)
    _check_place(settings, cache)
    folder = Path(local_path(settings.out))
    with locked(folder, watch.say):
        try:
            return _export_into(folder, settings, cache, watch, started)
        finally:
            with suppress(OSError):
                (folder / WORK).rmdir()


def _export_into(folder: Path, settings: ExportSettings, cache: Cache, watch: Watch, started: float) -> TablesReport:
    """Write the files that a folder, which is locked, does not have yet."""
    due = {f"{row.split}-{row.part:05d}.parquet": row for row in cache.parts}
    done = _look(folder, {name: _notes(settings, cache, row) for name, row in due.items()})
    watch.begin(len(due), len(done), cache.n_positions)
    first = n_rows = 0
    for name, row in due.items():
        if name not in done:
            began = time.perf_counter()
            n_bytes = _write(folder / name, settings, cache, row, first)
            watch.part_done(row.part, row.n_positions, n_bytes, time.perf_counter() - began)
        first += row.n_sequences
        n_rows += parquet_notes(str(folder / name))[1]
    return TablesReport(
        folder=settings.out,
        form=settings.form,
        cache_id=str(cache.cache_id),
        files=len(due),
        files_made=len(due) - len(done),
        rows=n_rows,
        positions=cache.n_positions,
        bytes=sum((folder / name).stat().st_size for name in due),
        left_out=left_out(settings.form, cache.manifest),
        seconds=time.perf_counter() - started,
    )


def _check_kind(settings: ExportSettings, cache: Cache) -> None:
    kind = cache.manifest.targets.keep.kind
    if kind == "state" or (kind == "none" and settings.form == "axolotl"):
        what = "states in place of ids" if kind == "state" else "tokens only"
        raise Incompatible(
            f"{settings.cache} holds {what}, which --to {settings.form} has no column for",
            hint="make one with ids of it: kdpipe cache requantize --targets threshold"
            if kind == "state"
            else "make a cache with another --targets",
        )


def _check_place(settings: ExportSettings, cache: Cache) -> None:
    if is_url(settings.out):
        raise ConfigError(
            f"--out {settings.out} is a URL, and an export is written into a folder", hint="give a local folder"
        )
    if is_inside(settings.out, cache.url):
        raise ConfigError(f"--out {settings.out} lies in the cache, {cache.url}", hint="choose another folder")


def _notes(settings: ExportSettings, cache: Cache, row: IndexRow) -> dict[str, str]:
    """What a file says of itself."""
    return {"kdpipe.form": settings.form, "kdpipe.cache_id": str(cache.cache_id), "kdpipe.part": row.sha256}


def _look(folder: Path, due: Mapping[str, Notes]) -> set[str]:
    """The files that are there already; anything else in the folder is refused."""
    with translate_os_errors("looking at the folder", folder):
        sweep(folder)
        found = sorted(path.name for path in folder.iterdir() if path.name not in (WORK, LOCK))
    for name in found:
        _check_own(folder / name, due.get(name))
    return set(found)


def _check_own(path: Path, due: Notes | None) -> None:
    """Refuse a file that is not of this export: of another cache or form, or of something else."""
    stated = parquet_notes(str(path))[0]
    if due is None or any(stated.get(key) != value for key, value in due.items()):
        raise ConfigError(
            f"{path.parent} holds {path.name}, which is no part of this export", hint="choose a new or empty folder"
        )


def _write(path: Path, settings: ExportSettings, cache: Cache, row: IndexRow, first: int) -> int:
    """One part as a file; its size."""
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
    """The rows of some sequences, gathered into row groups."""
    group: list[Row] = []
    n_tokens = 0
    for number in numbers:
        rows = cache.rows(number, hidden=False)
        group += table_rows(settings.form, rows, cache.manifest)
        n_tokens += len(rows)
        if n_tokens >= ROWS_A_GROUP:
            yield group
            group, n_tokens = [], 0
    if group:
        yield group
