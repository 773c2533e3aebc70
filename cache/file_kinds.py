"""What may be at the top of a cache: regular files and directories only, each where the format has it.

In: a store. Out: the names of the wrong kind, with what was found. Links, pipes and devices are never opened, so that
none of them can block or lead elsewhere. Verification reports them and copying refuses them, by this one rule. Below
the top, verification reports every file that is not regular, and a copy reads the files alone that records name.
"""

import os
import stat
from pathlib import Path
from typing import Final

from kdpipe.cache import layout
from kdpipe.cache.store import NO_LINKS, LocalStore, Store
from kdpipe.schemas.errors import CacheDamaged

DIRECTORIES: Final = frozenset({layout.PARTS, layout.TABLES, layout.TOKENIZER, layout.JOURNAL, layout.WORK})
FILES: Final = (layout.TOP_LEVEL | layout.BESIDE) - DIRECTORIES


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


def refuse_wrong_kinds(store: Store) -> None:
    """Refuse a cache with a link, pipe or other special file at its top."""
    for name, what in wrong_kinds(store).items():
        raise CacheDamaged(f"{store.url}/{name}: {what}", hint=NO_LINKS)


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a link"
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a regular file" if stat.S_ISREG(mode) else "a device or socket"
