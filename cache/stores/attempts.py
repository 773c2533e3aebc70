"""The folder of a part's files: the part's own, or one below.

In: a store, for sizes and small files. Out: the stored name of a file of a part. Where folders cannot be renamed,
several workers may upload one part at once: each into a folder named by the digest of its part.json, and the one
part.json that is created selects the folder.
"""

from collections.abc import Callable, Mapping
from typing import final

from kdpipe.cache import layout
from kdpipe.schemas.errors import CacheDamaged


@final
class AttemptStore:
    """Maps names to stored names, remembering each part; `size` and `read` take stored names."""

    def __init__(self, size: Callable[[str], int | None], read: Callable[[str, int], bytes]) -> None:
        self._size, self._read = size, read
        self._known: dict[str, str] = {}

    def stored_name(self, name: str) -> str:
        """The stored name of a file; only files of parts can differ."""
        in_part = layout.within_part(name)
        if in_part is None or in_part[1] == layout.PART_RECORD:
            return name
        folder, file = in_part
        return f"{folder}/{self.prefix(folder)}{file}"

    def prefix(self, folder: str) -> str:
        """The path from a part's folder to its files: empty, or the name of an attempt and a slash."""
        if folder not in self._known:
            prefix = self._lookup(folder)
            if prefix is None:
                return ""
            self._known[folder] = prefix
        return self._known[folder]

    def listed(self, folder: str, sizes: Mapping[str, int]) -> dict[str, int]:
        """A listing of a part's folder by the names of its files, without other attempts."""
        inside = layout.within_part(f"{folder}/x")
        if f"{folder}/{layout.SEQUENCES}" in sizes:
            self._known.setdefault(folder, "")
        prefix = self.prefix(folder) if inside is not None and inside[1] == "x" else ""
        if not prefix:
            return dict(sizes)
        record = f"{folder}/{layout.PART_RECORD}"
        whole = f"{folder}/{prefix}"
        inner = {f"{folder}/{name.removeprefix(whole)}": size for name, size in sizes.items() if name.startswith(whole)}
        return inner | {name: size for name, size in sizes.items() if name == record}

    def _lookup(self, folder: str) -> str | None:
        if self._size(f"{folder}/{layout.SEQUENCES}") is not None:
            return ""
        try:
            record = self._read(f"{folder}/{layout.PART_RECORD}", layout.MAX_RECORD_BYTES)
        except CacheDamaged:
            return None
        prefix = f"{layout.attempt(record)}/"
        return prefix if self._size(f"{folder}/{prefix}{layout.SEQUENCES}") is not None else None
