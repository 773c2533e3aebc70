"""The cache: bytes at rest. `from kdpipe.cache import open_cache` is where reading begins."""

from kdpipe.cache.opening import open_cache
from kdpipe.cache.reader import Cache

__all__ = ["Cache", "open_cache"]
