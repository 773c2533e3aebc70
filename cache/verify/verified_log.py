"""What this machine remembers of caches whose every byte was checked: a small file for each, outside of the caches.

In: a local folder that holds a finished cache, and its cache_id. Out: whether these very files were checked before.
Sizes and times tell whether a file is still the one that was looked at: nothing of it is read again. The memory may be
lost or unwritable at any time; then caches are checked once more.
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
MAX_MEMORY_BYTES: Final = 1 << 16
KEY_LETTERS: Final = 24
# What a cache is read from; a part's journal, work folders and what people put beside a cache are not.
READ: Final = (layout.MANIFEST, layout.INDEX, layout.TABLES, layout.TOKENIZER, layout.PARTS)


class VerifiedRecord(Record):
    """A cache that was checked; `files` is its `state_of` at that time."""

    cache_id: str
    path: str
    files: str = Field(pattern=r"^[0-9a-f]{64}$")


@final
class VerifiedLog:
    """The memory of one copy of a cache."""

    def __init__(self, root: Path, cache_id: str) -> None:
        self._root, self._cache_id = root.resolve(), cache_id
        key = sha256_hex(f"{cache_id} {self._root}".encode(errors="surrogateescape"))[:KEY_LETTERS]
        self.file = user_cache_folder() / FOLDER / f"{key}.json"

    def holds(self, state: str) -> bool:
        """Whether it says that the files were good as they are now; a memory that cannot be read is an error."""
        try:
            with self.file.open("rb") as file:
                data = file.read(MAX_MEMORY_BYTES)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise CacheError(f"{self.file} cannot be read: {error.strerror}") from None
        try:
            found = read_record(VerifiedRecord, data, str(self.file))
        except FileDamaged as error:
            raise CacheError(error.message) from None
        return found == self._record(state)

    def keep(self, state: str) -> None:
        """Remember that the files are good as they are."""
        with translate_os_errors("remembering that a cache is good", self.file.parent):
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
    """A digest of the names, sizes and times of all files that a cache is read from.

    The time of a file's last change is among them, which no copy and no program sets; inode numbers are not: some file
    systems of memory sticks and networks give others after each mount.
    """
    digest = hashlib.sha256()
    try:
        for name in READ:
            path = root / name
            for inside, folders, names in os.walk(path, onerror=_refuse) if path.is_dir() else ():
                folders.sort()
                for each in sorted(names):
                    _add(digest, root, Path(inside) / each)
            if path.is_file():
                _add(digest, root, path)
    except OSError as error:
        raise CacheError(
            f"{error.filename} cannot be looked at: {error.strerror}",
            hint="see that you may read all of the cache, and that nobody changes it meanwhile",
        ) from None
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", root: Path, path: Path) -> None:
    status = os.lstat(path)
    name = path.relative_to(root).as_posix()
    told = f"{name}\0{status.st_mode}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\n"
    digest.update(told.encode(errors="surrogateescape"))


def _refuse(error: OSError) -> None:
    raise error
