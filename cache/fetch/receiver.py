"""A local folder that a cache is copied into: each part is complete or absent, whatever interrupts the copy.

In: a source behind a `Fetcher`. Out: manifest, tokenizer, tables, parts, each checked before it gets its name. The next
copy takes over the partial files of one that was killed.
"""

import os
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn, final

from kdpipe.cache import layout
from kdpipe.cache.catalog import refuse_foreign_folder
from kdpipe.cache.durable.files import (
    make_dir,
    new_file,
    publish_dir,
    publish_file,
    remove_dir,
    sweep,
    sync_dir,
    translate_os_errors,
)
from kdpipe.cache.durable.work_names import is_abandoned, is_own, work_name
from kdpipe.cache.fetch.file import TAG, Fetcher
from kdpipe.cache.parts.index import IndexRow, read_index
from kdpipe.cache.parts.part_bytes import part_bytes
from kdpipe.cache.parts.part_files import checked_record, examine_part, metadata_files, stated_manifest
from kdpipe.cache.stores.file_kinds import DIRECTORIES, wrong_kinds
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.schemas.differences import differing_settings
from kdpipe.schemas.errors import CacheDamaged, ConfigError
from kdpipe.schemas.manifest import FileRecord, Manifest, read_manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.strict_json import MAX_BYTES, sha256_file, sha256_hex

SHOWN: Final = 5
OTHER_PLACE: Final = "choose a new or empty destination"
_lock = threading.Lock()
_in_use: set[Path] = set()


@final
class Receiver:
    """Downloads parts into `path`; `manifest` is that of the source, `data` its bytes."""

    def __init__(self, path: Path, manifest: Manifest, data: bytes, fetcher: Fetcher) -> None:
        self.path, self.manifest = path, manifest
        self._fetcher = fetcher
        with translate_os_errors("starting the copy", path):
            self.manifest_was_damaged = _take_manifest(path, manifest, data)
        self._store = LocalStore(path)

    def refuse_other_parts(self, cache_id: str | None) -> None:
        """Refuse to replace the parts of another finished cache with the same settings."""
        if cache_id is None or not (self.path / layout.INDEX).is_file():
            return
        try:
            present = read_index(self._store, self.manifest)[1]
        except CacheDamaged:  # the copy repairs it
            return
        if present != cache_id:
            raise ConfigError(f"{self.path} holds the cache {present}, expected {cache_id}", hint=OTHER_PLACE)

    def problems(self, number: int, row: IndexRow | None) -> list[str]:
        """The problems of a part in this folder, every byte checked."""
        record, problems = examine_part(self._store, self.manifest, number, row)
        if record is not None and not problems:
            problems = part_bytes(self._store, self.manifest, record)
        return [str(problem) for problem in problems]

    def has(self, number: int) -> bool:
        """Whether a part is present, good or damaged."""
        return (self.path / layout.part_dir(number)).is_dir()

    def take_shared(self, files: Mapping[str, FileRecord]) -> list[str]:
        """Download shared files that are missing or damaged; returns their names."""
        taken = []
        for name, record in files.items():
            final = self.path / name
            if (
                final.is_file()
                and not final.is_symlink()
                and final.stat().st_size == record.bytes
                and sha256_file(final) == record.sha256
            ):
                continue
            with (
                translate_os_errors(f"copying {name}", self.path),
                self._download_folder(name.replace("/", "_")) as work,
            ):
                self._fetcher.fetch(name, record, work / final.name)
                make_dir(final.parent)
                os.replace(work / final.name, final)
                sync_dir(final.parent)
            taken.append(name)
        return taken

    def take_part(self, number: int, row: IndexRow | None, *, damaged: bool = False) -> PartRecord:
        """Download a part unless it is present; of a damaged one, good files are reused."""
        folder = layout.part_dir(number)
        name = f"{folder}/{layout.PART_RECORD}"
        record, data = self._fetcher.read_checked(lambda: self._record(number, name, row))
        with translate_os_errors(f"copying part {number}", self.path), self._download_folder(f"{number:05d}") as work:
            final = self.path / folder
            if final.is_dir():
                remove_dir(work)
                if not damaged or not self.problems(number, row):  # another copy was first
                    return record
                os.rename(final, work)
            _keep_only(work, record.files)
            # Files that follow from the record are written without a request.
            known = metadata_files(self.manifest, record)
            for file, stated in sorted(record.files.items()):
                make_dir((work / file).parent)
                if file in known and sha256_hex(known[file]) == stated.sha256:
                    _put(known[file], work / file)
                else:
                    self._fetcher.fetch(f"{folder}/{file}", stated, work / file)
            _put(data, work / layout.PART_RECORD)
            if not publish_dir(work, final):
                remove_dir(work)  # another copy was first
        return record

    def _record(self, number: int, name: str, row: IndexRow | None) -> tuple[PartRecord, bytes]:
        """The record of a part and its bytes, read once, so that the checked bytes are written."""
        data = self._fetcher.store.read(name, layout.MAX_RECORD_BYTES)
        return checked_record(data, self.manifest, number, row)[0], data

    def take_index(self, data: bytes) -> None:
        """Write the index, once all parts are present."""
        with translate_os_errors(f"writing {layout.INDEX}", self.path):
            sync_dir(self.path / layout.PARTS)
        self._take(layout.INDEX, data)

    def take_signature(self, data: bytes) -> None:
        self._take(layout.SIGNATURE, data)

    def _take(self, name: str, data: bytes) -> None:
        final = self.path / name
        with translate_os_errors(f"writing {name}", self.path), self._download_folder(name) as work:
            if final.is_file() and not final.is_symlink() and final.read_bytes() == data:
                return
            _put(data, work / name)
            os.replace(work / name, final)
            sync_dir(self.path)

    def tidy(self) -> None:
        """Remove leftovers of interrupted copies."""
        sweep(self.path)
        with suppress(OSError):
            (self.path / layout.WORK).rmdir()

    @contextmanager
    def _download_folder(self, what: str) -> Iterator[Path]:
        """A folder to download into: that of an interrupted copy, or a new one; it remains while it holds files."""
        tmp = self.path / layout.WORK
        make_dir(tmp)
        with _lock:
            work = tmp / work_name(what)
            for abandoned in sorted(tmp.glob(f"{what}~*")):
                if abandoned not in _in_use and (is_abandoned(abandoned.name) or is_own(abandoned.name)):
                    with suppress(OSError):  # another copy took it first
                        os.rename(abandoned, work)
                        break
            make_dir(work)
            _in_use.add(work)
        try:
            yield work
        finally:
            with _lock:
                _in_use.discard(work)
            with suppress(OSError):
                work.rmdir()


def _put(data: bytes, path: Path) -> None:
    """Write a small file, in place of a partial one."""
    path.unlink(missing_ok=True)
    with new_file(path) as file:
        file.write(data)


def _take_manifest(path: Path, manifest: Manifest, data: bytes) -> bool:
    """Write the manifest or find it; True if a damaged one was replaced. The folder of another cache is refused."""
    make_dir(path)
    final = path / layout.MANIFEST
    wrong = wrong_kinds(LocalStore(path))
    for name in sorted(wrong.keys() & DIRECTORIES):  # never write through a link
        raise ConfigError(f"{path / name}: {wrong[name]}", hint=f"move it away, or {OTHER_PLACE}")
    if not os.path.lexists(final):
        if not _has_lost_its_manifest(path, manifest):
            refuse_foreign_folder(path)
        publish_file(path, final, data)
    try:
        present = LocalStore(path).read(layout.MANIFEST, MAX_BYTES)
        if present == data:
            sync_dir(path)
            return False
        other = read_manifest(present, str(final))
    except CacheDamaged:
        if _manifest_digests(path) - {manifest.sha256, None}:
            raise ConfigError(
                f"{final} is damaged, and parts in this folder belong to another cache",
                hint=f"copy the cache they belong to, with the same selection of parts, or {OTHER_PLACE}",
            ) from None
        final.unlink()
        publish_file(path, final, data)
        return True
    return refuse_other_cache(str(path), other, manifest)


def refuse_other_cache(place: str, present: Manifest, expected: Manifest) -> NoReturn:
    """Raise an error that lists the differences between the cache at a place and the expected one."""
    differing = differing_settings(present.model_dump(mode="json"), expected.model_dump(mode="json"))
    more = " ..." if len(differing) > SHOWN else ""
    hint = OTHER_PLACE
    if any(origin.action == "copy" for origin in present.history):
        hint = f"use the same --parts, --split and --without as before, or {OTHER_PLACE}"
    raise ConfigError(f"{place} holds another cache: {'; '.join(differing[:SHOWN])}{more}", hint=hint)


def _has_lost_its_manifest(path: Path, manifest: Manifest) -> bool:
    """Whether a folder without a manifest holds parts of this cache only."""
    names = {entry.name for entry in path.iterdir()}
    return names <= layout.TOP_LEVEL | layout.BESIDE and _manifest_digests(path) == {manifest.sha256}


def _manifest_digests(path: Path) -> set[str | None]:
    """The digests of the manifests that the parts of a folder state."""
    numbers = [int(entry.name) for entry in (path / layout.PARTS).glob("*") if layout.PART_NAME.match(entry.name)]
    return {stated_manifest(LocalStore(path), number) for number in numbers}


def _keep_only(work: Path, files: Mapping[str, FileRecord]) -> None:
    """Remove files that do not belong to a part; its partial files stay, with their tags.

    A partial file with several links is removed: writing to it would change a file of another name or cache.
    """
    for path in sorted(work.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        name = path.relative_to(work).as_posix()
        status = path.lstat()
        is_whole = name in files and status.st_size == files[name].bytes
        is_own = stat.S_ISREG(status.st_mode) and (status.st_nlink == 1 or is_whole)
        if name.removesuffix(TAG) not in files or not is_own:
            path.unlink()
