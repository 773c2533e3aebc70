"""Where the files of a part lie: in its folder, or one folder below.

In: a place that is asked for sizes and small files. Out: the name under which a part's file really lies. Where folders
cannot be renamed, several workers may send one part at once; each sends its files into a folder that is named by the
digest of its part.json, and the one part.json that is created picks the folder that counts.
"""

from collections.abc import Callable, Mapping
from typing import final

from kdpipe.cache import layout
from kdpipe.schemas.errors import CacheDamaged


@final
class AttemptStore:
    """Knows the parts that were asked for; `size` and `read` see names as they lie."""

    def __init__(self, size: Callable[[str], int | None], read: Callable[[str, int], bytes]) -> None:
        self._size, self._read = size, read
        self._known: dict[str, str] = {}

    def place(self, name: str) -> str:
        """Where a file lies; what is no file of a part lies where it is said to."""
        found = layout.within_part(name)
        if found is None or found[1] == layout.PART_RECORD:
            return name
        folder, file = found
        return f"{folder}/{self.of(folder)}{file}"

    def of(self, folder: str) -> str:
        """What stands between a part's folder and its files: nothing, or the name of an attempt and a slash."""
        if folder not in self._known:
            home = self._found(folder)
            if home is None:
                return ""
            self._known[folder] = home
        return self._known[folder]

    def listed(self, folder: str, found: Mapping[str, int]) -> dict[str, int]:
        """A listing of a part's folder as its files are called; other attempts are nobody's."""
        inside = layout.within_part(f"{folder}/x")
        if f"{folder}/{layout.SEQUENCES}" in found:
            self._known.setdefault(folder, "")
        home = self.of(folder) if inside is not None and inside[1] == "x" else ""
        if not home:
            return dict(found)
        record = f"{folder}/{layout.PART_RECORD}"
        prefix = f"{folder}/{home}"
        inner = {
            f"{folder}/{name.removeprefix(prefix)}": size for name, size in found.items() if name.startswith(prefix)
        }
        return inner | {name: size for name, size in found.items() if name == record}

    def _found(self, folder: str) -> str | None:
        if self._size(f"{folder}/{layout.SEQUENCES}") is not None:
            return ""
        try:
            record = self._read(f"{folder}/{layout.PART_RECORD}", layout.MAX_RECORD_BYTES)
        except CacheDamaged:
            return None
        home = f"{layout.attempt(record)}/"
        return home if self._size(f"{folder}/{home}{layout.SEQUENCES}") is not None else None
