"""The records of a cache, read once before it is copied or mirrored.

In: a store. Out: a `SourceSnapshot`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kdpipe.cache import layout
from kdpipe.cache.catalog import unindexed
from kdpipe.cache.parts.index import IndexRow, index_bytes, parsed_index
from kdpipe.cache.parts.part_files import read_part_record
from kdpipe.cache.signing import MAX_BYTES as MAX_SIGNATURE_BYTES
from kdpipe.cache.signing import Signature
from kdpipe.cache.stores.file_kinds import refuse_wrong_kinds
from kdpipe.cache.stores.protocol import Store
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import FileRecord, Manifest, read_manifest
from kdpipe.schemas.records import read_record
from kdpipe.schemas.strict_json import MAX_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSnapshot:
    """Manifest, index and shared files of a cache; `index`: None for an unfinished cache."""

    store: Store
    manifest: Manifest
    manifest_bytes: bytes
    rows: tuple[IndexRow, ...]
    cache_id: str | None
    index: bytes | None
    signature: bytes | None
    shared: dict[str, FileRecord]


def read_source(store: Store, *, allow_partial: bool = False) -> SourceSnapshot:
    refuse_wrong_kinds(store)
    data = store.read(layout.MANIFEST, MAX_BYTES)
    manifest = read_manifest(data, layout.MANIFEST)
    index, identity = None, None
    if store.size(layout.INDEX) is not None:
        # Read once, so that the checked bytes are written.
        index = index_bytes(store, manifest)
        rows, identity = parsed_index(index, manifest)
    else:
        rows = unindexed(store, manifest, allow_partial)
    return SourceSnapshot(
        store=store,
        manifest=manifest,
        manifest_bytes=data,
        rows=tuple(rows),
        cache_id=identity,
        index=index,
        signature=_signature(store),
        shared=_shared(store, manifest, rows),
    )


def _signature(store: Store) -> bytes | None:
    """The signature of a cache, checked for its form only: checking it needs the key."""
    if store.size(layout.SIGNATURE) is None:
        return None
    data = store.read(layout.SIGNATURE, MAX_SIGNATURE_BYTES)
    read_record(Signature, data, layout.SIGNATURE, damaged=CacheDamaged)
    return data


def _shared(store: Store, manifest: Manifest, rows: Sequence[IndexRow]) -> dict[str, FileRecord]:
    """The tokenizer's files, and the tables as the first part states them."""
    files = {f"{layout.TOKENIZER}/{name}": file for name, file in manifest.tokenizer.files.items()}
    for row in rows[:1]:
        record, _ = read_part_record(store, manifest, row.part, None)
        files |= {layout.table_file(name): file for name, file in record.tables.items()}
    return files
