"""The fast check of a part: its record, its files' names, kinds and sizes, its zarr.json.

In: a store and the manifest. Out: the part's record and every problem that can be seen without reading data.
"""

from kdpipe.cache import layout
from kdpipe.cache.format.zarr_json import GROUP, ArrayGrid, grids
from kdpipe.cache.parts.index import IndexRow
from kdpipe.cache.stores.protocol import Files, Store
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.records import read_record
from kdpipe.schemas.strict_json import sha256_hex
from kdpipe.schemas.verify_report import Problem
from kdpipe.schemas.version import MINOR

REFETCH = "copy this part again from where the cache was made, or delete the folder of the part and run stage one again"


def part_problem(number: int, file: str, what: str, do: str = REFETCH) -> Problem:
    """A problem in a file of a part."""
    return Problem(
        part=number, file=f"{layout.part_dir(number)}/{file}" if file else layout.part_dir(number), what=what, do=do
    )


def read_part_record(
    store: Files, manifest: Manifest, number: int, row: IndexRow | None
) -> tuple[PartRecord, IndexRow]:
    """Read part.json and hold it against the index, the manifest and the plan."""
    name = f"{layout.part_dir(number)}/{layout.PART_RECORD}"
    return checked_record(store.read(name, layout.MAX_RECORD_BYTES), manifest, number, row)


def checked_record(data: bytes, manifest: Manifest, number: int, row: IndexRow | None) -> tuple[PartRecord, IndexRow]:
    """The same for part.json as it was read."""
    name = f"{layout.part_dir(number)}/{layout.PART_RECORD}"
    if row is not None and sha256_hex(data) != row.sha256:
        raise CacheDamaged(f"{name} is not the one that {layout.INDEX} names")
    record = read_record(PartRecord, data, name, ignore_unknown=manifest.format.minor > MINOR, damaged=CacheDamaged)
    planned = manifest.plan.part(number)
    due = (number, planned.split, planned.first_document, planned.n_documents)
    if record.manifest_sha256 != manifest.sha256:
        raise CacheDamaged(f"{name} belongs to another manifest")
    stated = (record.part, record.split, record.first_document, record.n_documents)
    if stated != due:
        raise CacheDamaged(f"{name} has part, split, first document and number {stated}, the plan has {due}")
    if {column.name for column in manifest.arrays.row.columns} != set(record.column_bytes):
        raise CacheDamaged(f"{name}: column_bytes has other columns than the manifest")
    if (what := _wrong_files(manifest, record)) is not None:
        raise CacheDamaged(f"{name}: {what}")
    own_row = IndexRow.of(record, data)
    if row is not None and row != own_row:
        raise CacheDamaged(f"{name} counts otherwise than {layout.INDEX} does")
    return record, own_row


def _wrong_files(manifest: Manifest, record: PartRecord) -> str | None:
    """A sentence about files or shards that a part of such counts does not have."""
    shapes = part_grids(manifest, record)
    expected = layout.part_files(manifest, {name: grid.n_chunks for name, grid in shapes.items()})
    if set(record.files) != expected:
        return f"files lists too much or too little: {', '.join(sorted(set(record.files) ^ expected)[:4])}"
    if set(record.indexes) != {name for name, grid in shapes.items() if grid.n_chunks}:
        return "indexes names other arrays than the part has"
    shard = record.files.get(layout.array_shard("row"))
    if sum(record.column_bytes.values()) > (shard.bytes if shard else 0):
        return "column_bytes adds up to more than the shard of row holds"
    return None


def stated_manifest(store: Store, number: int) -> str | None:
    """The digest of the manifest that a part was made with, if its record can be read at all."""
    name = f"{layout.part_dir(number)}/{layout.PART_RECORD}"
    try:
        data = store.read(name, layout.MAX_RECORD_BYTES)
        return read_record(PartRecord, data, name, ignore_unknown=True, damaged=CacheDamaged).manifest_sha256
    except CacheDamaged:
        return None


def part_grids(manifest: Manifest, record: PartRecord) -> dict[str, ArrayGrid]:
    """The shape of every array of a part."""
    return grids(manifest, record.n_rows, record.n_exact, record.n_draws)


def metadata_files(manifest: Manifest, record: PartRecord) -> dict[str, bytes]:
    """Every zarr.json of a part, made again from what the manifest and the record say."""
    files = {f"{layout.TARGETS}/{layout.ZARR_JSON}": GROUP}
    return files | {layout.array_metadata(name): grid.to_json() for name, grid in part_grids(manifest, record).items()}


def examine_part(
    store: Store, manifest: Manifest, number: int, row: IndexRow | None
) -> tuple[PartRecord | None, list[Problem]]:
    """All that a part's record and listing show to be wrong."""
    record, problems = examine_record(store, manifest, number, row)
    if record is None:
        return None, problems
    try:
        sizes = store.walk(layout.part_dir(number), limit=64)
    except CacheDamaged as error:
        return None, [part_problem(number, "", error.message)]
    problems = compare_listing(number, record, sizes)
    if not problems:
        problems = _compare_metadata(store, number, record, metadata_files(manifest, record))
    return record, problems


def examine_record(
    store: Files, manifest: Manifest, number: int, row: IndexRow | None
) -> tuple[PartRecord | None, list[Problem]]:
    """A part's record, where it is one; else what is wrong with it."""
    try:
        record, _ = read_part_record(store, manifest, number, row)
    except CacheDamaged as error:
        name = f"{layout.part_dir(number)}/{layout.PART_RECORD}"
        return None, [part_problem(number, layout.PART_RECORD, error.message.removeprefix(name).lstrip(": "))]
    return record, []


def compare_listing(number: int, record: PartRecord, sizes: dict[str, int]) -> list[Problem]:
    """Files of a part that are missing, of another size, or none of its own; what is accounted for leaves `found`."""
    problems = []
    prefix = layout.part_dir(number) + "/"
    for name, file in sorted(record.files.items()):
        size = sizes.pop(prefix + name, None)
        if size is None:
            problems.append(part_problem(number, name, "the file is missing"))
        elif size != file.bytes:
            problems.append(part_problem(number, name, f"the file has {size:,} bytes, {file.bytes:,} were written"))
    sizes.pop(prefix + layout.PART_RECORD, None)
    for name in sorted(sizes):
        problems.append(
            part_problem(number, name.removeprefix(prefix), "the file does not belong to the part", "delete it")
        )
    return problems


def _compare_metadata(store: Store, number: int, record: PartRecord, due: dict[str, bytes]) -> list[Problem]:
    """zarr.json is there for zarr-python, not for us."""
    problems = []
    for name, data in due.items():
        if len(data) != record.files[name].bytes or store.read(f"{layout.part_dir(number)}/{name}", len(data)) != data:
            problems.append(part_problem(number, name, "it does not describe the array that the manifest does"))
    return problems
