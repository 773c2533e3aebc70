"""A cache behind a URL, through fsspec. The only module that imports it.

In: a URL such as s3://bucket/cache or memory://cache. Out: a `Store` whose files are fetched whole, each checked for
its size. Before it: `store.py` picks it. After it: the reader, which holds few parts at a time.
"""

from typing import Any

import fsspec

from kdpipe.cache.store import MAX_LISTED
from kdpipe.schemas.errors import CacheDamaged, ConfigError


class RemoteStore:
    """An fsspec URL."""

    def __init__(self, url: str) -> None:
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            extra = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hub"}.get(url.partition(":")[0])
            hint = f"pip install 'kdpipe[{extra}]'" if extra else "install the fsspec driver for it"
            raise ConfigError(
                f"{url.partition(':')[0]}:// needs a library that is not installed: {error}", hint=hint
            ) from None
        except ValueError as error:
            raise ConfigError(f"{url} is no URL that fsspec knows: {error}") from None
        self.url = url
        if not self._fs.isdir(self._root):
            raise ConfigError(f"there is no folder {url}", hint="give the URL that holds manifest.json")

    def walk(self, folder: str, limit: int = MAX_LISTED) -> dict[str, int]:
        """See `Store`."""
        root = self._path(folder)
        found: dict[str, Any] = self._fs.find(root, detail=True)
        if not found:
            raise CacheDamaged(f"{folder} cannot be listed: nothing is there")
        if len(found) > limit:
            raise CacheDamaged(f"{folder} holds more than {limit} files and folders")
        prefix = len(self._fs._strip_protocol(root))
        return {folder + name[prefix:]: int(info["size"]) for name, info in found.items()}

    def names(self, folder: str) -> list[str]:
        """See `Store`."""
        root = self._path(folder)
        if not self._fs.isdir(root):
            return []
        return sorted(str(name).rstrip("/").rpartition("/")[2] for name in self._fs.ls(root, detail=False))

    def size(self, name: str) -> int | None:
        """See `Store`."""
        try:
            info = self._fs.info(self._path(name))
        except FileNotFoundError:
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def read(self, name: str, limit: int) -> bytes:
        """See `Store`."""
        size = self.size(name)
        if size is None or size > limit:
            raise CacheDamaged(
                f"{name} {'is not there' if size is None else f'holds {size:,} bytes, at most {limit:,} are allowed'}"
            )
        return bytes(self._fs.cat_file(self._path(name)))

    def view(self, name: str, size: int) -> memoryview:
        """See `Store`."""
        data = self.read(name, size)
        if len(data) != size:
            raise CacheDamaged(f"{name} holds {len(data):,} bytes, {size:,} were written")
        return memoryview(data)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else str(self._root)
