"""A cache behind a URL, through fsspec. The only module that imports it.

In: a URL such as s3://bucket/cache or memory://cache. Out: a `Store` whose files are fetched whole, each checked for
its size. Before it: `store.py` picks it. After it: the reader, which holds few parts at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from kdpipe.cache.store import MAX_LISTED
from kdpipe.schemas.errors import CacheDamaged, CacheError, ConfigError, KdpipeError

EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hub"}
LIBRARIES = {"http": "aiohttp", "https": "aiohttp"}
MAX_TOLD = 300


class RemoteStore:
    """An fsspec URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        with self._reaching(""):
            self._fs, self._root = _driver(url)
            if not self._is_folder(""):
                if self._fs.exists(self._root):
                    raise ConfigError(f"{url} is a file, not a folder", hint="give the URL that holds manifest.json")
                raise ConfigError(f"there is no folder {url}", hint="give the URL that holds manifest.json")

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
        return {folder + name[prefix:]: int(info["size"]) for name, info in found.items()}

    def names(self, folder: str) -> list[str]:
        """See `Store`."""
        with self._reaching(folder):
            if not self._is_folder(folder):
                return []
            listed = self._fs.ls(self._path(folder), detail=False)
            return sorted(str(name).rstrip("/").rpartition("/")[2] for name in listed)

    def size(self, name: str) -> int | None:
        """See `Store`."""
        with self._reaching(name):
            try:
                info = self._fs.info(self._path(name))
            except (FileNotFoundError, NotADirectoryError):
                return None
            return int(info["size"]) if info["type"] == "file" else None

    def read(self, name: str, limit: int) -> bytes:
        """See `Store`."""
        size = self.size(name)
        if size is None or size > limit:
            raise CacheDamaged(
                f"{name} {'is not there' if size is None else f'holds {size:,} bytes, at most {limit:,} are allowed'}"
            )
        with self._reaching(name):
            return bytes(self._fs.cat_file(self._path(name)))

    def view(self, name: str, size: int) -> memoryview:
        """See `Store`."""
        data = self.read(name, size)
        if len(data) != size:
            raise CacheDamaged(f"{name} holds {len(data):,} bytes, {size:,} were written")
        return memoryview(data)

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
                raise ConfigError(
                    f"there is no folder {self.url}", hint="give the URL that holds manifest.json"
                ) from None
            raise CacheDamaged(f"{name} cannot be listed or read: nothing is there") from None
        except PermissionError as error:
            raise CacheError(
                f"{self._shown(name)} may not be read: {_told(error)}",
                hint="see that you are logged in there, and that your account may list and read it",
            ) from None
        except Exception as error:
            raise CacheError(
                f"{self._shown(name)} cannot be reached: {_told(error)}",
                hint="check the URL, the network and your account there, then try again",
            ) from None

    def _shown(self, name: str) -> str:
        return f"{self.url.rstrip('/')}/{name}" if name else self.url


def _driver(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    protocol = url.partition(":")[0]
    try:
        system, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        hint = "install the fsspec driver for it"
        if protocol in EXTRAS:
            hint = f"pip install 'kdpipe[{EXTRAS[protocol]}]'"
        elif protocol in LIBRARIES:
            hint = f"pip install {LIBRARIES[protocol]}"
        raise ConfigError(f"{protocol}:// needs a library that is not installed: {error}", hint=hint) from None
    except (ValueError, TypeError) as error:  # TypeError: a driver that needs more than a URL, as zip:// without ::
        raise ConfigError(f"{url} is no URL that fsspec knows: {error}") from None
    return system, str(root)


def _told(error: Exception) -> str:
    """The first line of what a driver says."""
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said[:MAX_TOLD]}" if said else type(error).__name__
