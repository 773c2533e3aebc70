"""A cache behind a URL, through fsspec. The only module that imports it.

In: a URL such as s3://bucket/cache or memory://cache. Out: a `Store` whose files are fetched whole, each checked for
its size.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final

import fsspec

from kdpipe.cache.layout import PART_NAME, PART_RECORD, PARTS
from kdpipe.cache.stores.attempts import AttemptStore
from kdpipe.cache.stores.failures import describe_error, driver_error
from kdpipe.cache.stores.protocol import MAX_LISTED, URL_HOLDS_MANIFEST, check_tag, checked_size
from kdpipe.cache.stores.retries import RetryingStore, RetryPolicy
from kdpipe.schemas.errors import CacheDamaged, ConfigError, KdpipeError, Unreachable

EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hub"}
# What others put there is seen at once, and a place that says nothing is not waited for all day.
_S3: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}},
}
# As drivers name themselves, where names with slashes are no folders.
BUCKETS = (("s3", "s3a"), ("gs", "gcs"))
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": _S3,
    "gs": {"use_listings_cache": False},
    "gcs": {"use_listings_cache": False},
}
# By which drivers tell that a file was replaced.
TAGS = ("ETag", "etag", "blob_id", "LastModified", "mtime", "created")


def open_remote(url: str, retry_policy: RetryPolicy) -> RetryingStore:
    """The store of a URL, with retries."""
    return RetryingStore(retry_policy.call(lambda: RemoteStore(url)), retry_policy)


class RemoteStore:
    """An fsspec URL that is read; `root_of` gives the path in its file system, where that is not the URL's own."""

    def __init__(self, url: str, root_of: Callable[[str], str] | None = None) -> None:
        self.url = url
        with self._reaching(""):
            self._fs, self._root = _driver(url)
            if root_of is not None:
                self._root = root_of(url)
            self._check_there()
        self._homes = AttemptStore(self._size, self._read)

    def _check_there(self) -> None:
        if self._is_folder(""):
            return
        if self._fs.exists(self._root):
            raise ConfigError(f"{self.url} is a file, not a folder", hint=URL_HOLDS_MANIFEST)
        raise ConfigError(f"there is no folder {self.url}", hint=URL_HOLDS_MANIFEST)

    def walk(self, folder: str, limit: int = MAX_LISTED) -> dict[str, int]:
        """See `Store`."""
        root = self._path(folder)
        with self._reaching(folder):
            found: dict[str, Any] = self._fs.find(root, detail=True)
            if not found:
                self._fs.ls(root)  # `find` keeps quiet about what it was refused
        if not found:
            raise CacheDamaged(f"{folder} cannot be listed: nothing is there")
        if len(found) > limit:
            raise CacheDamaged(f"{folder} holds more than {limit} files and folders")
        prefix = len(self._fs._strip_protocol(root))
        return self._homes.listed(folder, {folder + name[prefix:]: int(info["size"]) for name, info in found.items()})

    def names(self, folder: str) -> list[str]:
        """See `Store`; of parts those whose record is there, which comes last."""
        with self._reaching(folder):
            if not self._is_folder(folder):
                return []
            listed = self._fs.ls(self._path(folder), detail=False)
            names = sorted(str(name).rstrip("/").rpartition("/")[2] for name in listed)
            if folder != PARTS:
                return names
            whole = set(self._records())
        # A search keeps quiet about folders that it may not list: those are asked one by one.
        return [
            name
            for name in names
            if name in whole or not PART_NAME.match(name) or self._size(f"{PARTS}/{name}/{PART_RECORD}") is not None
        ]

    def _records(self) -> list[str]:
        """The folders of parts whose record is there: in a bucket from a listing of all files, a thousand a request."""
        root = self._path(PARTS)
        if self._fs.protocol in BUCKETS:
            found = self._fs.find(root)
        else:
            found = self._fs.glob(f"{root}/*/{PART_RECORD}")
        names = [str(name).split("/") for name in found]
        depth = len(str(self._fs._strip_protocol(root)).split("/"))
        return [name[-2] for name in names if name[-1] == PART_RECORD and len(name) == depth + 2]

    def listed(self) -> dict[str, int] | None:
        """Every file with its size, from one listing; None outside of buckets, where a listing may be incomplete."""
        return self._sizes_below("") if self._fs.protocol in BUCKETS else None

    def list_parts(self, sizes: Mapping[str, int] | None = None) -> dict[str, dict[str, int]]:
        """The files of every part with their sizes, by the part's folder, from one listing [`sizes`]."""
        parts: dict[str, dict[str, int]] = {}
        for name, size in (self._sizes_below(PARTS) if sizes is None else sizes).items():
            if name.startswith(f"{PARTS}/"):
                parts.setdefault("/".join(name.split("/")[:2]), {})[name] = size
        return {folder: self._homes.listed(folder, files) for folder, files in parts.items()}

    def _sizes_below(self, folder: str) -> dict[str, int]:
        """The size of every file in a folder and below it, by name."""
        with self._reaching(folder):
            found: dict[str, Any] = self._fs.find(self._path(folder), detail=True)
        prefix = len(str(self._fs._strip_protocol(self._root)).rstrip("/")) + 1
        return {name[prefix:]: int(info["size"]) for name, info in found.items()}

    def size(self, name: str) -> int | None:
        """See `Store`."""
        return self._size(self._homes.place(name))

    def _size(self, name: str) -> int | None:
        with self._reaching(name):
            try:
                info = self._fs.info(self._path(name))
            except (FileNotFoundError, NotADirectoryError) as error:
                # A driver's frames hold its error: without this the two, and all who called, stay until they are swept.
                error.__traceback__ = None
                return None
            return int(info["size"]) if info["type"] == "file" else None

    def read(self, name: str, limit: int) -> bytes:
        """See `Store`."""
        return self._read(self._homes.place(name), limit)

    def _read(self, name: str, limit: int) -> bytes:
        """One request, for no more than is allowed and one byte, which tells that there is more."""
        with self._reaching(name):
            try:
                found = bytes(self._fs.cat_file(self._path(name), start=0, end=limit + 1))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise CacheDamaged(f"{name} is not there") from None
            except Exception:
                if self._size(name) != 0:
                    raise
                return b""  # a file without bytes has no range that a bucket would answer
        if len(found) > limit:
            raise CacheDamaged(f"{name} holds more than the {limit:,} bytes that are allowed")
        return found

    def view(self, name: str, size: int) -> memoryview:
        """See `Store`."""
        return checked_size(self.read(name, size), name, size)

    def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
        """See `Store`; drivers read on no condition, so the tag is asked for again once the piece is here."""
        name = self._homes.place(name)
        with self._reaching(name):
            found = bytes(self._fs.cat_file(self._path(name), start=begin, end=end))
            if len(found) != end - begin:
                size = self._size(name)
                if size is not None and size < end:
                    raise CacheDamaged(f"{name} holds {size:,} bytes, {end:,} are needed")
                raise EOFError(f"{len(found):,} bytes came, {end - begin:,} were asked for")
            check_tag(name, tag, None if tag is None else self._tag(name))
            return found

    def stored_name(self, name: str) -> str:
        """What the place calls a file of a part."""
        return self._homes.place(name)

    def tag(self, name: str) -> str | None:
        """See `Store`."""
        name = self._homes.place(name)
        with self._reaching(name):
            return self._tag(name)

    def _tag(self, name: str) -> str | None:
        info = self._fs.info(self._path(name))
        told = next((info[key] for key in TAGS if info.get(key) is not None), None)
        return None if told is None else str(told)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else str(self._root)

    def _is_folder(self, name: str) -> bool:
        """Whether a folder is there; fsspec's `isdir` answers no to every refusal, so a no is asked again."""
        path = self._path(name)
        if self._fs.isdir(path):
            return True
        try:
            return bool(self._fs.info(path)["type"] == "directory")
        except (FileNotFoundError, NotADirectoryError):
            return False

    @contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        """Tell what is not there from what cannot be reached: drivers raise errors of their own for that."""
        try:
            yield
        except (KdpipeError, MemoryError):
            raise
        except (FileNotFoundError, NotADirectoryError):
            if not name:
                raise ConfigError(f"there is no folder {self.url}", hint=URL_HOLDS_MANIFEST) from None
            raise CacheDamaged(f"{name} cannot be listed or read: nothing is there") from None
        except Exception as error:
            raise driver_error(self._shown(name), error) from None

    def _shown(self, name: str) -> str:
        return f"{self.url.rstrip('/')}/{name}" if name else self.url


@final
class RemoteFolder(RemoteStore):
    """An fsspec URL that is written to: files appear whole, and `create` never replaces one."""

    def _check_there(self) -> None:
        """A place to write to need not be there yet."""
        try:
            kind = self._fs.info(self._root)["type"]
        except (FileNotFoundError, NotADirectoryError):
            return
        if kind == "file":
            raise ConfigError(f"{self.url} is a file, not a folder", hint="give the URL of a folder")

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file; false when there is one of that name already."""
        with self._reaching(name), self._writing():
            try:
                self._make_folder(name)
                self._fs.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            return True

    def put(self, name: str, path: Path) -> None:
        """Write a file from the disk, in place of what is there."""
        with self._reaching(name), self._writing():
            self._make_folder(name)
            self._fs.put_file(str(path), self._path(name))
        size = self._size(name)
        if size != path.stat().st_size:
            raise Unreachable(f"{self._shown(name)} holds {size} bytes after {path.stat().st_size:,} were sent")

    def remove(self, name: str) -> None:
        """Remove a file; one that another has removed meanwhile is gone as well."""
        with self._reaching(name), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A bucket that is not there is no damage: it is mistyped, or still to be made."""
        try:
            yield
        except FileNotFoundError as error:
            raise ConfigError(
                f"nothing can be written to {self.url}: {describe_error(error)}",
                hint="check the URL, or create the bucket first",
            ) from None

    def _make_folder(self, name: str) -> None:
        """Places with real folders need them; in a bucket there are none."""
        if self._fs.protocol not in BUCKETS and "/" in name:
            self._fs.makedirs(self._path(name.rpartition("/")[0]), exist_ok=True)


def _driver(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    protocol = url.partition(":")[0]
    try:
        system, root = fsspec.core.url_to_fs(url, **OPTIONS.get(protocol, {}))
    except ImportError as error:
        hint = "install the fsspec driver for it"
        if protocol in EXTRAS:
            hint = f"pip install 'kdpipe[{EXTRAS[protocol]}]'"
        raise ConfigError(f"{protocol}:// needs a library that is not installed: {error}", hint=hint) from None
    except (ValueError, TypeError) as error:  # TypeError: a driver that needs more than a URL, as zip:// without ::
        raise ConfigError(f"{url} is no URL that fsspec knows: {error}") from None
    if protocol in ("s3", "s3a"):
        system.retries = 1  # of its own: every retry is ours, so that it is reported and counted
    return system, str(root)
