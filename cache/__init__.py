"""The cache: bytes at rest. `from kdpipe.cache import open_cache` is where reading begins."""

from kdpipe.cache.reader import Cache, open_cache

__all__ = ["Cache", "open_cache"]
