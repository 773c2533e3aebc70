"""The store of a path or URL: a folder, a web server, or a place that fsspec or the hub reads and writes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

from kdpipe.cache.stores.addresses import check_address, is_url, is_web, local_path
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.stores.protocol import HOLDS_MANIFEST, MAX_LISTED, Store
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.errors import ConfigError

if TYPE_CHECKING:
    from kdpipe.cache.stores.fsspec_store import RemoteFolder, RemoteStore
    from kdpipe.cache.stores.hub_store import HubFolder


def open_store(url: str | os.PathLike[str], retry_policy: RetryPolicy | None = None) -> Store:
    """The store of a path or URL; requests to a place behind a URL are retried."""
    text = os.fspath(url)
    check_address(text)
    if not is_url(text):
        return _local(local_path(text))
    retry_policy = (retry_policy or RetryPolicy()).at(text)
    if is_web(text):
        from kdpipe.cache.stores.http_store import HttpStore

        return HttpStore(text, retry_policy=retry_policy)
    return RetryingStore(retry_policy.call(lambda: _remote(text)), retry_policy)


def open_folder(url: str) -> "RemoteFolder | HubFolder":
    """The place behind a URL that is written to."""
    if is_hub(url):
        from kdpipe.cache.stores.hub_store import HubFolder

        return HubFolder(url)
    from kdpipe.cache.stores.fsspec_store import RemoteFolder

    return RemoteFolder(url)


def is_hub(url: str) -> bool:
    """Whether a URL is of the Hugging Face hub."""
    return url.startswith("hf://")


def _remote(url: str) -> "RemoteStore":
    from kdpipe.cache.stores.fsspec_store import RemoteStore

    if not is_hub(url):
        return RemoteStore(url)
    from kdpipe.cache.stores.hub_store import pinned_root

    return RemoteStore(url, pinned_root)


def _local(path: str) -> LocalStore:
    if not path:
        raise ConfigError("the path of the cache is empty", hint=HOLDS_MANIFEST)
    return LocalStore(Path(path))


@final
class RetryingStore:
    """A place behind a URL, each request to which is retried."""

    def __init__(self, store: "RemoteStore", retry_policy: RetryPolicy) -> None:
        self.url = store.url
        self._store, self._call = store, retry_policy.call

    def walk(self, folder: str, limit: int = MAX_LISTED) -> dict[str, int]:
        """See `Store`."""
        return self._call(lambda: self._store.walk(folder, limit))

    def names(self, folder: str) -> list[str]:
        """See `Store`."""
        return self._call(lambda: self._store.names(folder))

    def size(self, name: str) -> int | None:
        """See `Store`."""
        return self._call(lambda: self._store.size(name))

    def read(self, name: str, limit: int) -> bytes:
        """See `Store`."""
        return self._call(lambda: self._store.read(name, limit))

    def view(self, name: str, size: int) -> memoryview:
        """See `Store`."""
        return self._call(lambda: self._store.view(name, size))

    def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
        """See `Store`."""
        return self._call(lambda: self._store.read_range(name, begin, end, tag))

    def tag(self, name: str) -> str | None:
        """See `Store`."""
        return self._call(lambda: self._store.tag(name))

    def listed(self) -> dict[str, int] | None:
        """Every file with its size, from one listing; None where a listing may be incomplete."""
        return self._call(self._store.listed)

    def list_parts(self, sizes: Mapping[str, int] | None = None) -> dict[str, dict[str, int]]:
        """The files of every part with their sizes, from one listing."""
        return self._call(lambda: self._store.list_parts(sizes))
