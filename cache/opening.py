"""The two doors: a cache to read, from a folder or a URL, and a cache to write, in a folder or a bucket."""

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
    """Open a cache, or one of its splits; `allow_partial` reads what an unfinished one already has.

    Parts of a cache behind a URL are kept `mirror`, in a folder of this machine; without it they are held in memory.
    `retry_policy` says how long a place behind a URL is retried.
    """
    if max_open_parts < 1:
        raise ConfigError(f"max_open_parts is {max_open_parts}, at least one part must be open to be read")
    address = os.fspath(url)
    if mirror is None or not is_url(address):
        store = open_store(address, retry_policy)
        return Cache(store, split, ReaderOptions(allow_partial, max_open_parts, retry_policy=retry_policy), reopen)
    from kdpipe.cache.mirror.mirror import mirrored_store

    near = mirrored_store(address, mirror, retry_policy)
    options = ReaderOptions(allow_partial, min(max_open_parts, near.most_open), mirror, retry_policy)
    return Cache(near, split, options, reopen, near)


def reopen(url: str, split: SplitName | None, options: ReaderOptions) -> Cache:
    """Open a cache again as it was opened, in another process."""
    allow_partial, most, mirror, retry_policy = options
    return open_cache(
        url, split, allow_partial=allow_partial, max_open_parts=most, mirror=mirror, retry_policy=retry_policy
    )


def create_cache(
    folder: str | os.PathLike[str], manifest: Manifest, retry_policy: RetryPolicy | None = None
) -> "CacheWriter":
    """Begin a cache, or resume the one of the same manifest; another manifest in the folder is refused."""
    if is_url(os.fspath(folder)):
        from kdpipe.cache.writing.bucket import create_bucket

        return create_bucket(os.fspath(folder), manifest, retry_policy)
    from kdpipe.cache.writing.folder import create_folder

    return create_folder(folder, manifest)
