"""The store of a path or URL, from a table of URL schemes: a folder, a web server, the Hugging Face Hub, or fsspec.

In: an address. Out: a store to read from, or one to write to. Adding a store is a module and a row in `STORES`; the
module is imported on first use.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from kdpipe.cache.stores.addresses import check_address, is_url
from kdpipe.cache.stores.protocol import Store, WritableStore
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreModule:
    """A module of stores: `reader(url, retry_policy)` gives a `Store`, `writer(url)` a `WritableStore`."""

    module: str
    reader: str
    writer: str | None = None

    def load(self, name: str) -> Any:
        return getattr(import_module(f"kdpipe.cache.stores.{self.module}"), name)


STORES: Final[Mapping[str, StoreModule]] = {
    "file": StoreModule(module="local_store", reader="open_local"),
    "http": StoreModule(module="http_store", reader="open_http"),
    "https": StoreModule(module="http_store", reader="open_http"),
    "hf": StoreModule(module="hub_store", reader="open_hub", writer="HubFolder"),
}
# Any other scheme is looked up by fsspec.
OTHER: Final = StoreModule(module="fsspec_store", reader="open_remote", writer="RemoteFolder")


def _store_module(address: str) -> StoreModule:
    return STORES.get(address.partition(":")[0] if is_url(address) else "file", OTHER)


def open_store(url: str | os.PathLike[str], retry_policy: RetryPolicy | None = None) -> Store:
    """The store of a path or URL; requests to a remote store are retried."""
    address = os.fspath(url)
    check_address(address)
    module = _store_module(address)
    store: Store = module.load(module.reader)(address, (retry_policy or RetryPolicy()).at(address))
    return store


def open_folder(url: str) -> WritableStore:
    """The store of a URL to write to."""
    module = _store_module(url)
    if module.writer is None:
        raise ConfigError(f"{url} cannot be written to", hint="use a bucket, hf://, or a local folder")
    store: WritableStore = module.load(module.writer)(url)
    return store
