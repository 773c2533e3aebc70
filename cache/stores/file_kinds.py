"""File types in a cache: regular files and directories only.

In: a store. Out: names with a wrong type. Links, pipes and devices are never opened: they could block, or point outside
of the cache. Verification reports them and copying refuses them. Regular files that are not part of the format are
reported by verification, and skipped by a copy.
"""

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from kdpipe.cache import layout
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.stores.protocol import NO_LINKS, Store
from kdpipe.schemas.errors import CacheDamaged

DIRECTORIES: Final = frozenset({layout.PARTS, layout.TABLES, layout.TOKENIZER, layout.JOURNAL, layout.WORK})
FILES: Final = (layout.TOP_LEVEL | layout.BESIDE) - DIRECTORIES
# At most so many are reported.
MOST_NAMED: Final = 1000


def wrong_kinds(store: Store) -> dict[str, str]:
    """Names at the top level of a local cache with a wrong file type; buckets and servers have files only."""
    if not isinstance(store, LocalStore):
        return {}
    kinds = {}
    for name in sorted(FILES | DIRECTORIES):
        try:
            mode = os.lstat(Path(store.url) / name).st_mode
        except FileNotFoundError:
            continue
        if not (stat.S_ISDIR(mode) if name in DIRECTORIES else stat.S_ISREG(mode)):
            kinds[name] = f"expected a {'directory' if name in DIRECTORIES else 'regular file'}, found {_kind(mode)}"
    return kinds


def wrong_kinds_below(store: Store) -> dict[str, str]:
    """Names below the top level of a local cache that are neither regular files nor directories, except in tmp/."""
    if not isinstance(store, LocalStore):
        return {}
    folders = [name for name in sorted(DIRECTORIES - wrong_kinds(store).keys()) if name != layout.WORK]
    special = (entry for name in folders for entry in _special(store, name))
    return {
        name: f"expected a regular file or directory, found {_kind(mode)}" for name, mode in islice(special, MOST_NAMED)
    }


def refuse_wrong_kinds(store: Store) -> None:
    """Refuse a cache with a link, pipe or other special file in it."""
    for name, what in (wrong_kinds(store) or wrong_kinds_below(store)).items():
        raise CacheDamaged(f"{store.url}/{name}: {what}", hint=NO_LINKS)


def _special(store: LocalStore, folder: str) -> Iterator[tuple[str, int]]:
    """Names below a directory that are neither regular files nor directories, in order, with their modes."""
    left = [folder]
    while left:
        current = left.pop()
        directories = []
        for name, mode in store.modes(current):
            if stat.S_ISDIR(mode):
                directories.append(name)
            elif not stat.S_ISREG(mode):
                yield name, mode
        left += reversed(directories)


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a link"
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a regular file" if stat.S_ISREG(mode) else "a device or socket"
