"""Adopts a part of another cache without decoding: its files unchanged, its part.json rewritten.

In: a cache under construction, the part's record, and `fetch`, which puts one file of it into a folder. Out: a
committed part that differs from its source only in part.json and in files left out.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from kdpipe.cache import layout
from kdpipe.cache.durable.files import link_file, make_dir, new_file
from kdpipe.cache.parts.part_files import part_grids
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.stores.protocol import Store
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.schemas.differences import differing_keys
from kdpipe.schemas.errors import CacheDamaged, Incompatible
from kdpipe.schemas.manifest import FileRecord, Manifest, expected_tables
from kdpipe.schemas.part import PartRecord

# Bytes copied at a time: a file of hidden states may have gigabytes.
PIECE_BYTES = 1 << 25
# Creates a file of the part, by name, with this size and digest at a new path; it is complete and synced on return.
Fetch = Callable[[str, FileRecord, Path], None]


def fetch_from(store: Store, number: int) -> Fetch:
    """Hard-link the files of a part on the same disk; otherwise copy them and check their sha256."""

    def fetch(name: str, file: FileRecord, target: Path) -> None:
        place = f"{layout.part_dir(number)}/{name}"
        if store.size(place) != file.bytes:
            raise CacheDamaged(f"{store.url}: {place} does not have the {file.bytes:,} bytes that were written")
        if isinstance(store, LocalStore) and link_file(Path(store.url) / f"{store.part_prefix(number)}{name}", target):
            return
        digest = hashlib.sha256()
        with new_file(target) as copy:
            for begin in range(0, file.bytes, PIECE_BYTES):
                piece = store.read_range(place, begin, min(file.bytes, begin + PIECE_BYTES))
                digest.update(piece)
                copy.write(piece)
            if digest.hexdigest() != file.sha256:
                raise CacheDamaged(f"{store.url}: {place} is damaged (sha256 differs)")

    return fetch


def adopt_part(writer: CacheWriter, number: int, source: Manifest, record: PartRecord, fetch: Fetch) -> bool:
    """Adopt a part of another cache as part `number`; false when another worker was first.

    Arrays that the cache under construction does not have are left out: see `without_rows`.
    """
    _check_form(source, writer.manifest, record)

    def fill(work: Path, tables: dict[str, FileRecord]) -> PartRecord:
        adopted = adopted_record(record, source, writer.manifest, number, tables)
        for name, file in sorted(adopted.files.items()):
            make_dir((work / name).parent)
            fetch(name, file, work / name)
        return adopted

    return writer.adopt(number, fill)


def adopted_record(
    record: PartRecord, source: Manifest, manifest: Manifest, number: int, tables: dict[str, FileRecord]
) -> PartRecord:
    """The record of a part in its new cache: only its cache and place change."""
    planned = manifest.plan.part(number)
    if planned.n_documents != record.n_documents:
        raise Incompatible(f"part {number} has {record.n_documents:,} documents, expected {planned.n_documents:,}")
    if changed := sorted(name for name in tables if record.tables.get(name) != tables[name]):
        raise Incompatible(
            f"cannot adopt a part with other tables: {', '.join(changed)}",
            hint="rewrite its rows",
        )
    gone = set(layout.array_names(source)) - set(layout.array_names(manifest))
    inside = tuple(f"{layout.TARGETS}/{name}/" for name in gone)
    no_text = source.data.text and not manifest.data.text
    left_out = {name for name in record.files if name.startswith(inside) or (no_text and name == layout.TEXT)}
    return PartRecord.model_validate(
        {
            **dict(record),
            "manifest_sha256": manifest.sha256,
            "part": number,
            "split": planned.split,
            "first_document": planned.first_document,
            "indexes": {name: sha256 for name, sha256 in record.indexes.items() if name not in gone},
            "n_text_frames": 0 if no_text else record.n_text_frames,
            "tables": tables,
            "files": {name: file for name, file in record.files.items() if name not in left_out},
        }
    )


def without_rows(manifest: Manifest) -> Manifest:
    """The manifest without the hidden states of rows: no array, and no tables for them."""
    hidden = manifest.hidden.model_copy(update={"rows": ()})
    due, still = (
        {table.name for table in expected_tables(manifest.targets, kept, manifest.vocabulary_size)}
        for kept in (manifest.hidden, hidden)
    )
    return with_changes(
        manifest,
        hidden=hidden,
        arrays=manifest.arrays.model_copy(update={"hidden": None}),
        tables=tuple(table for table in manifest.tables if table.name in still or table.name not in due),
    )


def without_text(manifest: Manifest) -> Manifest:
    """The manifest without the documents' text."""
    return with_changes(manifest, data=manifest.data.model_copy(update={"text": False}))


def with_changes(manifest: Manifest, **changes: object) -> Manifest:
    """A manifest with some keys changed, validated; it has a new digest."""
    return Manifest.model_validate({**dict(manifest), **changes})


def _check_form(source: Manifest, manifest: Manifest, record: PartRecord) -> None:
    """Refuse a part whose bytes would be decoded differently in the new cache."""
    expected = source if manifest.arrays.hidden is not None else without_rows(source)
    if differing := differing_keys(_form(expected), _form(manifest)):
        raise Incompatible(
            f"cannot adopt a part with another format: {'; '.join(differing[:5])}", hint="rewrite its rows"
        )
    if source.plan.sequence_length > manifest.plan.sequence_length:
        raise Incompatible(
            f"a part may have sequences of {source.plan.sequence_length:,} rows, the maximum is "
            f"{manifest.plan.sequence_length:,}"
        )
    check_files(source, record)


def check_files(source: Manifest, record: PartRecord) -> None:
    """Refuse a part whose record names other files than a part of its cache has."""
    lengths = {name: grid.n_chunks for name, grid in part_grids(source, record).items()}
    if set(record.files) != layout.part_files(source, lengths):
        raise CacheDamaged(f"{layout.part_dir(record.part)}: its record lists other files than expected")


def _form(manifest: Manifest) -> dict[str, object]:
    """Everything that determines how a part's bytes are decoded, except tables."""
    keys = {"targets", "hidden", "arrays"}
    data = {"columns", "text", "loss"}
    vocabulary = {"vocabulary_size": manifest.vocabulary_size, "fingerprint": manifest.tokenizer.fingerprint}
    return {**manifest.model_dump(mode="json", include={**dict.fromkeys(keys, True), "data": data}), **vocabulary}
