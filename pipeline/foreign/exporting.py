"""Files for other tools from a cache: `kdpipe cache export`.

In: a cache, a form, a folder. Out: a Parquet file for each part, named by its split as `datasets` finds splits, and a
report that says what the form has no place for. Before it: `cli/cache/export.py`, `tables.py`. After it: other tools.
A file appears under its name when it is whole and says of which cache and part it is, so that the same command goes on.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from kdpipe.cache.addresses import is_url, local_path
from kdpipe.cache.arrow_files import lists_writer, parquet_notes
from kdpipe.cache.files import explained, make_dir, new_file, sync_dir
from kdpipe.cache.index import IndexRow
from kdpipe.cache.reader import Cache, open_cache
from kdpipe.cache.reshape.sources import lies_in
from kdpipe.pipeline.foreign.tables import Row, column_types, left_out, table_rows
from kdpipe.pipeline.watch import Watch
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.foreign import ExportSettings, TablesReport

# Tokens of a row group: with a hundred ids a token some 40 MB in memory.
ROWS_A_GROUP = 1 << 15
UNFINISHED = ".part"


def export_cache(settings: ExportSettings, watch: Watch) -> TablesReport:
    """Do what is left to do of an export."""
    started = time.perf_counter()
    cache = open_cache(settings.cache, settings.split)
    _check_kind(settings, cache)
    _check_place(settings, cache)
    folder = Path(local_path(settings.out))
    due = {f"{row.split}-{row.part:05d}.parquet": row for row in cache.parts}
    done = _look(folder, {name: _notes(settings, cache, row) for name, row in due.items()})
    watch.begin(len(due), len(done), cache.n_positions)
    with explained("writing files", folder):
        make_dir(folder)
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
            hint="make one with ids of it: kdpipe cache requantise --targets threshold"
            if kind == "state"
            else "make a cache with another --targets",
        )


def _check_place(settings: ExportSettings, cache: Cache) -> None:
    if is_url(settings.out):
        raise ConfigError(
            f"--out {settings.out} is a URL, and an export is written into a folder", hint="give a local folder"
        )
    if lies_in(settings.out, cache.url):
        raise ConfigError(f"--out {settings.out} lies in the cache, {cache.url}", hint="choose another folder")


def _notes(settings: ExportSettings, cache: Cache, row: IndexRow) -> dict[str, str]:
    """What a file says of itself."""
    return {"kdpipe.form": settings.form, "kdpipe.cache_id": str(cache.cache_id), "kdpipe.part": row.sha256}


def _look(folder: Path, due: dict[str, dict[str, str]]) -> set[str]:
    """The files that are there already; anything else in the folder is refused."""
    with explained("looking at the folder", folder):
        found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    done = set()
    for name in found:
        if name.removesuffix(UNFINISHED) in due and name.endswith(UNFINISHED):
            continue
        stated = parquet_notes(str(folder / name))[0]
        if any(stated.get(key) != value for key, value in due.get(name, {"": ""}).items()):
            raise ConfigError(
                f"{folder} holds {name}, which is no part of this export", hint="choose a new or empty folder"
            )
        done.add(name)
    return done


def _write(path: Path, settings: ExportSettings, cache: Cache, row: IndexRow, first: int) -> int:
    """One part as a file; its size."""
    unfinished = path.with_name(path.name + UNFINISHED)
    with explained(f"writing {path.name}", path.parent):
        unfinished.unlink(missing_ok=True)
        types, notes = column_types(settings.form, cache.manifest), _notes(settings, cache, row)
        with new_file(unfinished) as file, lists_writer(file, types, notes) as write:
            for group in _groups(settings, cache, range(first, first + row.n_sequences)):
                write(group)
        os.replace(unfinished, path)
        sync_dir(path.parent)
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
