"""index.parquet and the identity of a cache: which parts it is made of.

In: the manifest and the records of all parts. Out: one row a part, and `cache_id`, the sha256 over both.
`arrow_files.py` writes the file, `plain_parquet.py` reads it: Parquet's own library aborts at some bytes of strangers.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from kdpipe.cache import layout
from kdpipe.cache.parts.arrow_files import Field, write_parquet
from kdpipe.cache.parts.plain_parquet import MAX_FOOTER_BYTES, PlainColumn, read_plain_parquet
from kdpipe.cache.stores.protocol import Store
from kdpipe.schemas.cache_plan import MAX_PART_ROWS
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.strict_json import canonical, sha256_hex
from kdpipe.schemas.version import MAJOR, MINOR

# A row takes about 130 bytes, the footer a few thousand.
MAX_ROW_BYTES = 256
SEAL = b"kdpipe.sha256"
NO_SEAL = b"0" * 64
COUNTS = ("n_sequences", "n_rows", "n_positions", "n_exact", "n_draws", "n_bytes")
FIELDS = [
    Field(name="part", type="uint32"),
    Field(name="split", type="string"),
    Field(name="sha256", type="string"),
    *(Field(name=name, type="uint64") for name in COUNTS),
]
COLUMNS = [PlainColumn(field.name, field.type) for field in FIELDS]


@dataclass(frozen=True, slots=True)
class IndexRow:
    """A part's row of the index; `sha256` is that of its part.json."""

    part: int
    split: str
    sha256: str
    n_sequences: int
    n_rows: int
    n_positions: int
    n_exact: int
    n_draws: int
    n_bytes: int

    @classmethod
    def of(cls, record: PartRecord, data: bytes) -> "IndexRow":
        """The row of a part, given its part.json as record and as bytes."""
        counts = (record.n_sequences, record.n_rows, record.n_positions, record.n_exact, record.n_draws)
        return cls(record.part, record.split, sha256_hex(data), *counts, record.n_bytes + len(data))


def cache_id(manifest: Manifest, digests: Sequence[str]) -> str:
    """The identity of a whole cache: the digest of its manifest's digest and its parts' digests."""
    return sha256_hex(canonical({"manifest": manifest.sha256, "parts": list(digests)}))


def write_index(file: BinaryIO, manifest: Manifest, rows: Sequence[IndexRow]) -> str:
    """Write the index of all parts; the cache_id."""
    identity = cache_id(manifest, [row.sha256 for row in rows])
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in FIELDS}
    notes = {"kdpipe.cache_id": identity, "kdpipe.format": f"{MAJOR}.{MINOR}", SEAL.decode(): NO_SEAL.decode()}
    buffer = io.BytesIO()
    write_parquet(buffer, FIELDS, columns, notes)
    file.write(sealed(buffer.getvalue()))
    return identity


def sealed(data: bytes) -> bytes:
    """An index whose note `kdpipe.sha256` is the digest of the file with zeros in that place."""
    place = _seal_place(data)
    blank = data[:place] + NO_SEAL + data[place + len(NO_SEAL) :]
    return data[:place] + sha256_hex(blank).encode() + data[place + len(NO_SEAL) :]


def _seal_place(data: bytes) -> int:
    """The offset of the digest: Parquet puts a type and a length, a byte each, between a note's key and its value."""
    return data.rfind(SEAL) + len(SEAL) + 2


def read_index(store: Store, manifest: Manifest) -> tuple[list[IndexRow], str]:
    """Read the index, hold it against the plan, and work out the cache_id again."""
    return parsed_index(index_bytes(store, manifest), manifest)


def index_bytes(store: Store, manifest: Manifest) -> bytes:
    """The stored index, no longer than one of so many parts can be."""
    return store.read(layout.INDEX, MAX_FOOTER_BYTES + MAX_ROW_BYTES * manifest.plan.n_parts)


def parsed_index(data: bytes, manifest: Manifest) -> tuple[list[IndexRow], str]:
    """The content of an index whose bytes are intact and of this cache."""
    if sealed(data) != data:
        raise CacheDamaged(f"{layout.INDEX}: its bytes are not those that were written (sha256 differs)")
    try:
        columns, notes = read_plain_parquet(data, COLUMNS, manifest.plan.n_parts)
    except ValueError as error:
        raise CacheDamaged(f"{layout.INDEX} is not the Parquet file it should be: {error}") from None
    rows = [IndexRow(*values) for values in zip(*(columns[field.name] for field in FIELDS), strict=True)]
    identity = cache_id(manifest, [row.sha256 for row in rows])
    if notes.get("kdpipe.cache_id") != identity:
        raise CacheDamaged(f"{layout.INDEX} states another cache_id than its manifest and parts have")
    first = 0
    for split in manifest.plan.splits:
        for number in range(first, first + len(split.bounds) - 1):
            row = rows[number]
            if (row.part, row.split) != (number, split.name) or max(row.n_sequences, row.n_rows) > MAX_PART_ROWS:
                raise CacheDamaged(f"{layout.INDEX}: row {number} is not of part {number} of {split.name}")
        first += len(split.bounds) - 1
    return rows, identity
