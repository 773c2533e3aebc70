"""Opens the cache of a run: a local folder, or a URL through a local mirror.

In: `CacheSettings`. Out: a `Cache` or one of its splits, checked against the pinned id.
"""

from pathlib import Path
from typing import Final

from kdpipe.cache import open_cache
from kdpipe.cache.reader import Cache
from kdpipe.cache.stores.addresses import MirrorSettings, is_url, user_cache_folder
from kdpipe.cache.stores.retries import RETRY_SECONDS, RetryPolicy
from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.progress import Progress
from kdpipe.schemas.train_settings import CacheSettings

LIMIT: Final = 100 * 1000**3


def open_run_cache(settings: CacheSettings, progress: Progress, split: SplitName | None = None) -> Cache:
    """Open a cache; retries are reported to `progress`."""
    path = settings.path
    if path is None:
        raise ConfigError("no cache given", hint="use --from-cache DIR")
    seconds = RETRY_SECONDS if settings.retry_for is None else settings.retry_for
    cache = open_cache(
        path,
        split,
        allow_partial=settings.allow_partial,
        mirror=_mirror_settings(settings, path),
        retry_policy=RetryPolicy(budget=seconds, report=progress.message),
    )
    pin = settings.pin
    if pin is not None and not (cache.cache_id or "").startswith(pin):
        raise Incompatible(
            f"the cache at {cache.url} has id {cache.cache_id or 'none (unfinished)'}; expected {pin} (--pin)",
            hint="use the address of the pinned cache, or remove --pin",
        )
    return cache


def _mirror_settings(settings: CacheSettings, path: str) -> MirrorSettings | None:
    if not is_url(path):
        for name, value in (("dir", settings.dir), ("limit", settings.limit)):
            if value is not None:
                raise ConfigError(
                    f"cache.{name} applies to remote caches only; {path} is a local folder", hint=f"remove cache.{name}"
                )
        return None
    folder = Path(settings.dir).expanduser() if settings.dir is not None else user_cache_folder()
    return MirrorSettings(folder=folder.absolute(), limit=settings.limit or LIMIT)
