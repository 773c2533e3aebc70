"""The cache of a run, opened: in its folder, or behind a URL through a folder on this machine.

In: `CacheSettings`. Out: a `Cache` or one of its splits, the one that was pinned if one was.
"""

from pathlib import Path
from typing import Final

from kdpipe.cache import open_cache
from kdpipe.cache.reader import Cache
from kdpipe.cache.stores.addresses import MirrorSettings, is_url, user_cache_folder
from kdpipe.cache.stores.retries import RETRY_SECONDS, RetryPolicy
from kdpipe.pipeline.watch import Listener
from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.train_settings import CacheSettings

LIMIT: Final = 100 * 1000**3


def opened(settings: CacheSettings, watch: Listener, split: SplitName | None = None) -> Cache:
    """Open a cache; whoever watches is told of retries."""
    path = settings.path
    if path is None:
        raise ConfigError("nothing says which cache to learn from", hint="give --from-cache DIR")
    seconds = RETRY_SECONDS if settings.retry_for is None else settings.retry_for
    cache = open_cache(
        path,
        split,
        allow_partial=settings.allow_partial,
        mirror=_mirror_settings(settings, path),
        retry_policy=RetryPolicy(budget=seconds, report=watch.say),
    )
    pin = settings.pin
    if pin is not None and not (cache.cache_id or "").startswith(pin):
        raise Incompatible(
            f"the cache at {cache.url} is {cache.cache_id or 'unfinished'}, and --pin says {pin}",
            hint="give the address of the cache that was pinned, or leave --pin out",
        )
    return cache


def _mirror_settings(settings: CacheSettings, path: str) -> MirrorSettings | None:
    if not is_url(path):
        for name, value in (("dir", settings.dir), ("limit", settings.limit)):
            if value is not None:
                raise ConfigError(
                    f"cache.{name} is for caches behind a URL, and {path} is a folder", hint="leave it out"
                )
        return None
    folder = Path(settings.dir).expanduser() if settings.dir is not None else user_cache_folder()
    return MirrorSettings(folder=folder.absolute(), limit=settings.limit or LIMIT)
