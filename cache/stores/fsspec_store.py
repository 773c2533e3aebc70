"""A cache at a URL, through fsspec. The only module that imports it.

In: a URL such as s3://bucket/cache or memory://cache. Out: a `Store` whose files are downloaded whole, with their sizes
checked.
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
# No listings cache: files of other writers are seen at once. Timeouts: a silent server fails soon.
_S3: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}},
}
# Drivers (by their `protocol`) without real folders.
BUCKETS = (("s3", "s3a"), ("gs", "gcs"))
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": _S3,
    "gs": {"use_listings_cache": False},
    "gcs": {"use_listings_cache": False},
}
# Keys of `info` that change when a file is replaced.
TAGS = ("ETag", "etag", "blob_id", "LastModified", "mtime", "created")


def open_remote(url: str, retry_policy: RetryPolicy) -> RetryingStore:
    """The store of a URL, with retries."""
    return RetryingStore(retry_policy.call(lambda: RemoteStore(url)), retry_policy)


class RemoteStore:
    """An fsspec URL to read from; `root_of` gives its path in the file system, if it differs from the URL's."""

    def __init__(self, url: str, root_of: Callable[[str], str] | None = None) -> None:
        self.url = url
        with self._errors(""):
            self._fs, self._root = _driver(url)
            if root_of is not None:
                self._root = root_of(url)
            self._check_there()
        self._attempts = AttemptStore(self._size, self._read)

    def _check_there(self) -> None:
        if self._is_folder(""):
            return
        if self._fs.exists(self._root):
            raise ConfigError(f"{self.url} is a file, not a folder", hint=URL_HOLDS_MANIFEST)
        raise ConfigError(f"no such folder: {self.url}", hint=URL_HOLDS_MANIFEST)

    def walk(self, folder: str, limit: int = MAX_LISTED) -> dict[str, int]:
        root = self._path(folder)
        with self._errors(folder):
            details: dict[str, Any] = self._fs.find(root, detail=True)
            if not details:
                self._fs.ls(root)  # `find` hides permission errors
        if not details:
            raise CacheDamaged(f"{folder} cannot be listed: it does not exist")
        if len(details) > limit:
            raise CacheDamaged(f"{folder} has more than {limit} files and folders")
        prefix = len(self._fs._strip_protocol(root))
        return self._attempts.listed(
            folder, {folder + name[prefix:]: int(info["size"]) for name, info in details.items()}
        )

    def names(self, folder: str) -> list[str]:
        """See `Store`; parts are listed once they have a record, which is written last."""
        with self._errors(folder):
            if not self._is_folder(folder):
                return []
            listed = self._fs.ls(self._path(folder), detail=False)
            names = sorted(str(name).rstrip("/").rpartition("/")[2] for name in listed)
            if folder != PARTS:
                return names
            whole = set(self._records())
        # A search skips folders without permission silently: their records are looked up one by one.
        return [
            name
            for name in names
            if name in whole or not PART_NAME.match(name) or self._size(f"{PARTS}/{name}/{PART_RECORD}") is not None
        ]

    def _records(self) -> list[str]:
        """The folders of parts with a record; in a bucket from a listing of all files, 1,000 per request."""
        root = self._path(PARTS)
        if self._fs.protocol in BUCKETS:
            paths = self._fs.find(root)
        else:
            paths = self._fs.glob(f"{root}/*/{PART_RECORD}")
        names = [str(name).split("/") for name in paths]
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
        return {folder: self._attempts.listed(folder, files) for folder, files in parts.items()}

    def _sizes_below(self, folder: str) -> dict[str, int]:
        """The size of every file in a folder and below it, by name."""
        with self._errors(folder):
            details: dict[str, Any] = self._fs.find(self._path(folder), detail=True)
        prefix = len(str(self._fs._strip_protocol(self._root)).rstrip("/")) + 1
        return {name[prefix:]: int(info["size"]) for name, info in details.items()}

    def size(self, name: str) -> int | None:
        return self._size(self._attempts.stored_name(name))

    def _size(self, name: str) -> int | None:
        with self._errors(name):
            try:
                info = self._fs.info(self._path(name))
            except (FileNotFoundError, NotADirectoryError) as error:
                # Frames of a driver refer to its error: without this the cycle keeps all callers alive.
                error.__traceback__ = None
                return None
            return int(info["size"]) if info["type"] == "file" else None

    def read(self, name: str, limit: int) -> bytes:
        return self._read(self._attempts.stored_name(name), limit)

    def _read(self, name: str, limit: int) -> bytes:
        """One request, for one byte more than allowed, which shows that the file is too long."""
        with self._errors(name):
            try:
                data = bytes(self._fs.cat_file(self._path(name), start=0, end=limit + 1))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise CacheDamaged(f"{name} does not exist") from None
            except Exception:
                if self._size(name) != 0:
                    raise
                return b""  # buckets answer no range of an empty file
        if len(data) > limit:
            raise CacheDamaged(f"{name} has more than the {limit:,} bytes allowed")
        return data

    def view(self, name: str, size: int) -> memoryview:
        return checked_size(self.read(name, size), name, size)

    def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
        """See `Store`; drivers have no conditional reads, so the tag is compared after the read."""
        name = self._attempts.stored_name(name)
        with self._errors(name):
            data = bytes(self._fs.cat_file(self._path(name), start=begin, end=end))
            if len(data) != end - begin:
                size = self._size(name)
                if size is not None and size < end:
                    raise CacheDamaged(f"{name} has {size:,} bytes, expected at least {end:,}")
                raise EOFError(f"received {len(data):,} bytes, expected {end - begin:,}")
            check_tag(name, tag, None if tag is None else self._tag(name))
            return data

    def stored_name(self, name: str) -> str:
        return self._attempts.stored_name(name)

    def tag(self, name: str) -> str | None:
        name = self._attempts.stored_name(name)
        with self._errors(name):
            return self._tag(name)

    def _tag(self, name: str) -> str | None:
        info = self._fs.info(self._path(name))
        tag = next((info[key] for key in TAGS if info.get(key) is not None), None)
        return None if tag is None else str(tag)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else str(self._root)

    def _is_folder(self, name: str) -> bool:
        """Whether a folder exists; fsspec's `isdir` is false for permission errors too, so false is checked again."""
        path = self._path(name)
        if self._fs.isdir(path):
            return True
        try:
            return bool(self._fs.info(path)["type"] == "directory")
        except (FileNotFoundError, NotADirectoryError):
            return False

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Translate errors of drivers: a missing file, or a store that cannot be reached."""
        try:
            yield
        except (KdpipeError, MemoryError):
            raise
        except (FileNotFoundError, NotADirectoryError):
            if not name:
                raise ConfigError(f"no such folder: {self.url}", hint=URL_HOLDS_MANIFEST) from None
            raise CacheDamaged(f"{name} cannot be listed or read: it does not exist") from None
        except Exception as error:
            raise driver_error(self._address(name), error) from None

    def _address(self, name: str) -> str:
        return f"{self.url.rstrip('/')}/{name}" if name else self.url


@final
class RemoteFolder(RemoteStore):
    """An fsspec URL to write to: files appear whole, and `create` never replaces one."""

    def _check_there(self) -> None:
        """A folder to write to may be missing."""
        try:
            kind = self._fs.info(self._root)["type"]
        except (FileNotFoundError, NotADirectoryError):
            return
        if kind == "file":
            raise ConfigError(f"{self.url} is a file, not a folder", hint="give the URL of a folder")

    def create(self, name: str, data: bytes) -> bool:
        with self._errors(name), self._writing():
            try:
                self._make_folder(name)
                self._fs.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            return True

    def put(self, name: str, path: Path) -> None:
        with self._errors(name), self._writing():
            self._make_folder(name)
            self._fs.put_file(str(path), self._path(name))
        size = self._size(name)
        if size != path.stat().st_size:
            raise Unreachable(f"{self._address(name)} has {size} bytes after an upload of {path.stat().st_size:,}")

    def remove(self, name: str) -> None:
        with self._errors(name), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A missing bucket is a wrong address, not damage."""
        try:
            yield
        except FileNotFoundError as error:
            raise ConfigError(
                f"cannot write to {self.url}: {describe_error(error)}",
                hint="check the URL, or create the bucket first",
            ) from None

    def _make_folder(self, name: str) -> None:
        """Create the folder of a file, except in buckets."""
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
        raise ConfigError(f"fsspec cannot open {url}: {error}") from None
    if protocol in ("s3", "s3a"):
        system.retries = 1  # retries are those of `RetryPolicy`, which reports them
    return system, str(root)
