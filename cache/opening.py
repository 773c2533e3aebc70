"""`open_cache` reads a cache from a folder or URL; `create_cache` writes one to a folder, bucket or Hub repository."""

import os
from typing import TYPE_CHECKING

from kdpipe.cache.reader import MAX_OPEN_PARTS, Cache, ReaderOptions
from kdpipe.cache.stores.addresses import MirrorSettings, is_url
from kdpipe.cache.stores.dispatch import open_store
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import Manifest

if TYPE_CHECKING:
    from kdpipe.cache.writing.writer import CacheWriter


def open_cache(
    url: str | os.PathLike[str],
    split: SplitName | None = None,
    *,
    allow_partial: bool = False,
    max_open_parts: int = MAX_OPEN_PARTS,
    mirror: MirrorSettings | None = None,
    retry_policy: RetryPolicy | None = None,
) -> Cache:
    """Open a cache, or one of its splits; `allow_partial` reads the parts of an unfinished cache.

    Parts of a remote cache are downloaded to a `mirror`, a local folder, or without one held in memory; failed requests
    are retried as `retry_policy` states.
    """
    if max_open_parts < 1:
        raise ConfigError(f"max_open_parts is {max_open_parts}, expected at least 1")
    address = os.fspath(url)
    if mirror is None or not is_url(address):
        options = ReaderOptions(allow_partial, max_open_parts, retry_policy=retry_policy)
        return Cache(open_store(address, retry_policy), split, options, reopen)
    from kdpipe.cache.mirror.mirror import mirrored_store

    store = mirrored_store(address, mirror, retry_policy)
    options = ReaderOptions(allow_partial, min(max_open_parts, store.max_open_parts), mirror, retry_policy)
    return Cache(store, split, options, reopen, store)


def reopen(url: str, split: SplitName | None, options: ReaderOptions) -> Cache:
    """Open a cache again as it was opened, in another process."""
    allow_partial, most, mirror, retry_policy = options
    return open_cache(
        url, split, allow_partial=allow_partial, max_open_parts=most, mirror=mirror, retry_policy=retry_policy
    )


def create_cache(
    folder: str | os.PathLike[str], manifest: Manifest, retry_policy: RetryPolicy | None = None
) -> "CacheWriter":
    """Create a cache, or resume one with the same manifest; a folder or URL with another manifest is refused."""
    if is_url(os.fspath(folder)):
        from kdpipe.cache.writing.bucket import create_bucket

        return create_bucket(os.fspath(folder), manifest, retry_policy)
    from kdpipe.cache.writing.folder import create_folder

    return create_folder(folder, manifest)
