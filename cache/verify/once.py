"""A remote store that requests files outside of parts only once, since a verification reads them several times.

In: a store. Out: a store that caches sizes and small files.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, final

from kdpipe.cache import layout
from kdpipe.cache.stores.protocol import MAX_LISTED, Store, checked_size
from kdpipe.cache.stores.retries import RetryingStore
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import read_manifest
from kdpipe.schemas.strict_json import MAX_BYTES

# Files up to this much longer than stated are read to report their size.
SLACK_BYTES: Final = 1 << 20


@final
class CachedFiles:
    """Caches files outside of parts, except tables, which may be large."""

    def __init__(self, store: Store) -> None:
        self.store, self.url = store, store.url
        # One listing of a bucket has all names and sizes.
        self._listed = store.listed() if isinstance(store, RetryingStore) else None
        self._sizes: dict[str, int | None] = {}
        self._read: dict[str, bytes] = {}
        self._folder: Path | None = None

    def keeping(self, folder: Path) -> "CachedFiles":
        """Also save the manifest, and tables that are viewed, to a local cache in a folder."""
        (folder / layout.TABLES).mkdir()
        (folder / layout.MANIFEST).write_bytes(self.read(layout.MANIFEST, MAX_BYTES))
        self._folder = folder
        return self

    def walk(self, folder: str, limit: int = MAX_LISTED) -> dict[str, int]:
        """Without a listing, the tokenizer's files are read instead of requesting their sizes."""
        if self._listed is not None and not folder.startswith(layout.PARTS):
            return self._walk_listing(self._listed, folder, limit)
        if folder != layout.TOKENIZER or isinstance(self.store, RetryingStore):
            return self.store.walk(folder, limit)
        manifest = read_manifest(self.read(layout.MANIFEST, MAX_BYTES), layout.MANIFEST)
        for name, file in manifest.tokenizer.files.items():
            path = f"{folder}/{name}"
            with suppress(CacheDamaged):  # reported as missing
                self._read[path] = self.store.read(path, 2 * file.bytes + SLACK_BYTES)
        return {name: len(data) for name, data in self._read.items() if name.startswith(f"{folder}/")}

    def _walk_listing(self, listed: Mapping[str, int], folder: str, limit: int) -> dict[str, int]:
        sizes = {name: size for name, size in listed.items() if name.startswith(f"{folder}/")}
        if not sizes:
            raise CacheDamaged(f"{folder} cannot be listed: nothing is there")
        if len(sizes) > limit:
            raise CacheDamaged(f"{folder} holds more than {limit} files and folders")
        return sizes

    def names(self, folder: str) -> list[str]:
        """Of parts, those with a record, which is written last."""
        if self._listed is None:
            return self.store.names(folder)
        prefix = f"{folder}/" if folder else ""
        names = {name.removeprefix(prefix).partition("/")[0] for name in self._listed if name.startswith(prefix)}
        if folder == layout.PARTS:
            records = {f"{prefix}{name}/{layout.PART_RECORD}": name for name in names if layout.PART_NAME.match(name)}
            names -= {name for record, name in records.items() if record not in self._listed}
        return sorted(names)

    def list_parts(self) -> dict[str, dict[str, int]] | None:
        """The files of every part with their sizes, by the part's folder; None without a listing."""
        return self.store.list_parts(self._listed) if isinstance(self.store, RetryingStore) else None

    def size(self, name: str) -> int | None:
        if self._listed is not None and layout.within_part(name) is None:
            return self._listed.get(name)
        if name not in self._sizes:
            self._sizes[name] = self.store.size(name)
        return self._sizes[name]

    def read(self, name: str, limit: int) -> bytes:
        if name not in (layout.MANIFEST, layout.INDEX):
            return self.store.read(name, limit)
        if name not in self._read:
            self._read[name] = self.store.read(name, limit)
        return self._read[name]

    def view(self, name: str, size: int) -> memoryview:
        if name in self._read:
            return checked_size(self._read[name], name, size)
        data = self.store.view(name, size)
        if self._folder is not None and name.startswith(f"{layout.TABLES}/"):
            (self._folder / name).write_bytes(data)
        return data

    def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
        return self.store.read_range(name, begin, end, tag)

    def tag(self, name: str) -> str | None:
        return self.store.tag(name)
