"""Log of the caches that were verified on this machine: a small file for each, outside of the caches.

In: a local folder with a finished cache, and its cache_id. Out: whether these files were verified before. A changed
file is recognized by its size and times, without reading it. If the log is lost or not writable, caches are checked
again.
"""

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final, final

from pydantic import Field

from kdpipe.cache import layout
from kdpipe.cache.durable.files import make_dir, new_file, translate_os_errors
from kdpipe.cache.stores.addresses import user_cache_folder
from kdpipe.schemas.errors import CacheError, FileDamaged
from kdpipe.schemas.records import Record, read_record
from kdpipe.schemas.strict_json import sha256_hex

FOLDER: Final = "checked"
MAX_LOG_BYTES: Final = 1 << 16
KEY_LETTERS: Final = 24
# Files that reading depends on; the journal, work folders and extra files do not count.
READ: Final = (layout.MANIFEST, layout.INDEX, layout.TABLES, layout.TOKENIZER, layout.PARTS)


class VerifiedRecord(Record):
    """A verified cache; `files` is its `state_of` at that time."""

    cache_id: str
    path: str
    files: str = Field(pattern=r"^[0-9a-f]{64}$")


@final
class VerifiedLog:
    """The log entry of one copy of a cache."""

    def __init__(self, root: Path, cache_id: str) -> None:
        self._root, self._cache_id = root.resolve(), cache_id
        key = sha256_hex(f"{cache_id} {self._root}".encode(errors="surrogateescape"))[:KEY_LETTERS]
        self.file = user_cache_folder() / FOLDER / f"{key}.json"

    def holds(self, state: str) -> bool:
        """Whether the files were verified in this state; an unreadable entry is an error."""
        try:
            with self.file.open("rb") as file:
                data = file.read(MAX_LOG_BYTES)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise CacheError(f"{self.file} cannot be read: {error.strerror}") from None
        try:
            record = read_record(VerifiedRecord, data, str(self.file))
        except FileDamaged as error:
            raise CacheError(error.message) from None
        return record == self._record(state)

    def keep(self, state: str) -> None:
        """Record that the files are good in this state."""
        with translate_os_errors("recording a verified cache", self.file.parent):
            make_dir(self.file.parent)
            work = self.file.with_name(f".{self.file.name}~{secrets.token_hex(4)}")
            try:
                with new_file(work) as file:
                    file.write(self._record(state).to_json())
                os.replace(work, self.file)
            finally:
                with suppress(FileNotFoundError):
                    work.unlink()

    def _record(self, state: str) -> VerifiedRecord:
        shown = str(self._root).encode(errors="backslashreplace").decode()
        return VerifiedRecord(cache_id=self._cache_id, path=shown, files=state)


def state_of(root: Path) -> str:
    """A digest of the names, sizes and times of all files that reading depends on.

    It includes ctime, which programs cannot set, but no inode numbers: some file systems change them at every mount.
    """
    digest = hashlib.sha256()
    try:
        for name in READ:
            path = root / name
            for inside, folders, names in os.walk(path, onerror=_refuse) if path.is_dir() else ():
                folders.sort()
                for file in sorted(names):
                    _add(digest, root, Path(inside) / file)
            if path.is_file():
                _add(digest, root, path)
    except OSError as error:
        raise CacheError(
            f"{error.filename} cannot be looked at: {error.strerror}",
            hint="check the permissions of all files of the cache, and that no program changes them",
        ) from None
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", root: Path, path: Path) -> None:
    status = os.lstat(path)
    name = path.relative_to(root).as_posix()
    line = f"{name}\0{status.st_mode}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\n"
    digest.update(line.encode(errors="surrogateescape"))


def _refuse(error: OSError) -> None:
    raise error
