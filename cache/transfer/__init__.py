"""Copies of caches between folders and URLs, checked file by file."""

from kdpipe.cache.transfer.copying import copy_cache as copy_cache
