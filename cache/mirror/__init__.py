"""A local copy of a cache behind a URL, bounded in bytes."""
