"""What may be in a cache: regular files and directories only, each at the top where the format has it.

In: a store. Out: the names of the wrong kind, with what was found. Links, pipes and devices are never opened, so that
none of them can block or lead elsewhere. Verification reports them and copying refuses them, by this one rule; a
regular file that the format does not name is reported by verification too, and a copy leaves it out.
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
# Of a cache with more of them the rest is not looked for.
MOST_NAMED: Final = 1000


def wrong_kinds(store: Store) -> dict[str, str]:
    """Names at the top of a local cache that are not what the format has there; buckets and servers hold files only."""
    if not isinstance(store, LocalStore):
        return {}
    found = {}
    for name in sorted(FILES | DIRECTORIES):
        try:
            mode = os.lstat(Path(store.url) / name).st_mode
        except FileNotFoundError:
            continue
        if not (stat.S_ISDIR(mode) if name in DIRECTORIES else stat.S_ISREG(mode)):
            found[name] = f"expected a {'directory' if name in DIRECTORIES else 'regular file'}, found {_kind(mode)}"
    return found


def wrong_kinds_below(store: Store) -> dict[str, str]:
    """Names below the top of a local cache that are neither regular files nor directories, tmp/ left out."""
    if not isinstance(store, LocalStore):
        return {}
    folders = [name for name in sorted(DIRECTORIES - wrong_kinds(store).keys()) if name != layout.WORK]
    special = (each for name in folders for each in _special(store, name))
    return {
        name: f"expected a regular file or directory, found {_kind(mode)}" for name, mode in islice(special, MOST_NAMED)
    }


def refuse_wrong_kinds(store: Store) -> None:
    """Refuse a cache with a link, pipe or other special file in it."""
    for name, what in (wrong_kinds(store) or wrong_kinds_below(store)).items():
        raise CacheDamaged(f"{store.url}/{name}: {what}", hint=NO_LINKS)


def _special(store: LocalStore, folder: str) -> Iterator[tuple[str, int]]:
    """What is neither a regular file nor a directory in a directory and below, in order, with its mode."""
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
