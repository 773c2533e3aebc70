"""Caches to be damaged: every kind of array in small chunks, everything a reader gives, and seals made to hold again.

In: a folder. Out: a sealed cache there, a digest of all its contents, or the same folder with its checksums put right.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pcodec import standalone

from kdpipe.cache import layout
from kdpipe.cache.format.codecs import CHECKSUM_BYTES, Pcodec, crc32c
from kdpipe.cache.format.shards import PLACE_BYTES
from kdpipe.cache.opening import create_cache, open_cache
from kdpipe.cache.parts.arrow_files import write_parquet
from kdpipe.cache.parts.index import COUNTS, FIELDS, NO_SEAL, SEAL, sealed
from kdpipe.cache.parts.tokenizer_content import tokenizer_content
from kdpipe.schemas.arrays import Arrays
from kdpipe.schemas.manifest import FileRecord, Manifest
from kdpipe.schemas.strict_json import canonical, sha256_hex
from kdpipe.schemas.version import MAJOR, MINOR
from support.synthetic import Recipe, synthetic_tables
from support.tiny import SMALL, files_of, manifest_of, unsynced, write_part

TWO_PARTS = replace(SMALL, documents={"train": 8}, documents_per_part=4)
RECIPES = {
    "threshold": replace(SMALL, documents={"train": 4, "validation": 4}, boundary=True),
    "sampled": replace(TWO_PARTS, kind="sampled", draws=8, text=False),
    "topk": replace(TWO_PARTS, kind="topk", top_k=12, text=False),
    "state": replace(TWO_PARTS, kind="state", state_width=8, text=False),
}
TOKENIZER = {"tokenizer.json": b'{"model":{}}', "tokenizer_config.json": b"{}"}


_made: dict[str, dict[str, bytes]] = {}
# What a record of any content leads to when it is taken at its word.
WRONG_RECORD = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError)


def chunked_manifest(recipe: Recipe, small_vectors: bool) -> Manifest:
    """The manifest of a recipe, with a tokenizer's files and so small chunks that arrays have many of them.

    With `small_vectors` false all vectors of a part are one chunk: files of two parts then have one size.
    """
    manifest = manifest_of(recipe)
    arrays = manifest.arrays.model_dump(mode="json")
    for name, length in (
        ("row", "chunk_rows"),
        ("id", "chunk_entries"),
        ("times", "chunk_entries"),
        ("logprob", "chunk_entries"),
    ):
        if arrays[name]:
            arrays[name][length] = 64
    for name in ("hidden", "state"):
        if arrays[name] and small_vectors:
            arrays[name]["chunk_rows"] = 32
    files = {name: FileRecord(bytes=len(data), sha256=sha256_hex(data)) for name, data in TOKENIZER.items()}
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields}
    fields["arrays"] = Arrays.model_validate_json(json.dumps(arrays))
    fields["tokenizer"] = manifest.tokenizer.model_copy(
        update={"files": files, "fingerprint": tokenizer_content(TOKENIZER).fingerprint}
    )
    return Manifest(**fields)


def make_chunked_cache(path: Path, kind: str) -> Path:
    """A sealed cache of a kind of target."""
    recipe = RECIPES[kind]
    with unsynced():
        writer = create_cache(path, chunked_manifest(recipe, small_vectors=kind != "topk"))
        writer.publish_tables(synthetic_tables(recipe))
        writer.publish_tokenizer(TOKENIZER)
        for number in writer.missing():
            write_part(writer, number, recipe)
        writer.seal()
    return path


def fresh_cache(path: Path, kind: str = "threshold") -> Path:
    """The same, made once and written from memory afterwards."""
    if kind not in _made:
        make_chunked_cache(path, kind)
        _made[kind] = {name: (path / name).read_bytes() for name in files_of(path)}
        return path
    for name, data in _made[kind].items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def everything_of(path: Path, allow_partial: bool = False) -> str:
    """A digest of everything that a reader gives: every number, text, table, count and record."""
    digest = hashlib.sha256()
    cache = open_cache(path, allow_partial=allow_partial)
    messages: list[Any] = [cache.manifest.sha256, len(cache), cache.n_positions, cache.sequences_by_part]
    if not allow_partial:
        messages.append(cache.cache_id)
    digest.update(repr(messages).encode())
    for table in cache.manifest.tables:
        digest.update(cache.table(table.name).tobytes())
    for i, rows in enumerate(cache):
        for name in (name for name in rows.__slots__ if name != "decode"):
            _add(digest, getattr(rows, name))
        _add(digest, cache.pooled(i))
        _add(digest, cache.token_bytes(i))
        texts = cache.texts(i) if cache.manifest.data.text else None
        digest.update(repr((cache.columns(i), cache.digests(i), texts)).encode())
    for row in cache.parts:
        digest.update(cache.part(row.part).record.to_json())
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    values = value.values() if isinstance(value, Mapping) else [value]
    for array in values:
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())


def edit_json(file: Path, edit: Callable[[Any], object]) -> None:
    """Change a record, and write it in canonical form."""
    value = json.loads(file.read_bytes())
    edit(value)
    file.write_bytes(canonical(value))


def copy_part(path: Path, source: int, target: int) -> None:
    """Put a copy of one part in the place of another of no fewer documents, and seal the cache again."""
    folder, plan = path / layout.part_dir(target), open_cache(path).manifest.plan
    shutil.rmtree(folder)
    shutil.copytree(path / layout.part_dir(source), folder)
    own = plan.part(target).model_dump()
    own["part"] = own.pop("number")
    edit_json(folder / layout.PART_RECORD, lambda record: record.update(own))
    reseal(path)


def reseal(path: Path, *, chunks: bool = True) -> None:
    """Put every digest and checksum of a cache right after an edit, as the maker of the cache could have done.

    Records that are no JSON, or not what they should be, are left as they are; `chunks` false leaves shards alone.
    """
    manifest_sha256 = sha256_hex((path / layout.MANIFEST).read_bytes())
    records = []
    for folder in sorted((path / layout.PARTS).iterdir()):
        try:
            records.append(_reseal_part(path, folder, manifest_sha256, chunks))
        except WRONG_RECORD:
            continue
    try:
        rebuild_index(path, manifest_sha256, records)
    except WRONG_RECORD:
        return


def _reseal_part(path: Path, folder: Path, manifest_sha256: str, chunks: bool) -> tuple[dict[str, Any], bytes]:
    file = folder / layout.PART_RECORD
    record = json.loads(file.read_bytes())
    record["manifest_sha256"] = manifest_sha256
    for array in list(record["indexes"]) if chunks else ():
        metadata = json.loads((folder / layout.array_metadata(array)).read_bytes())
        shard = folder / layout.array_shard(array)
        if shard.is_file():
            record["indexes"][array] = reseal_shard(shard, n_chunks(metadata))
    for name in record["files"]:
        if (folder / name).is_file():
            data = (folder / name).read_bytes()
            record["files"][name] = {"bytes": len(data), "sha256": sha256_hex(data)}
    for name in record["tables"]:
        data = (path / layout.table_file(name)).read_bytes()
        record["tables"][name] = {"bytes": len(data), "sha256": sha256_hex(data)}
    data = canonical(record)
    file.write_bytes(data)
    return record, data


def n_chunks(metadata: dict[str, Any]) -> int:
    """The chunks of an array, from its zarr.json."""
    chunk = metadata["codecs"][0]["configuration"]["chunk_shape"]
    return int(np.prod([-(-length // size) for length, size in zip(metadata["shape"], chunk, strict=True)]))


def tail_bytes(n: int) -> int:
    """Bytes of the checksums and the index at the end of a shard of n chunks."""
    return n * (CHECKSUM_BYTES + PLACE_BYTES) + CHECKSUM_BYTES


def read_index_of(data: bytes, n: int) -> list[tuple[int, int]]:
    """The places of a shard's chunks."""
    index = np.frombuffer(data[-PLACE_BYTES * n - CHECKSUM_BYTES : -CHECKSUM_BYTES], "<u8").reshape(n, 2)
    return [(int(offset), int(size)) for offset, size in index]


def reseal_shard(file: Path, n: int) -> str:
    """Put the checksums of every chunk in the file, and of the index, right; the sha256 of the tail."""
    data = bytearray(file.read_bytes())
    start = len(data) - tail_bytes(n)
    if start < 0:
        raise ValueError("too short")
    checksums = bytearray(data[start : start + n * CHECKSUM_BYTES])
    for number, (offset, size) in enumerate(read_index_of(bytes(data), n)):
        end = offset + size
        if size >= CHECKSUM_BYTES and end <= start:
            data[end - CHECKSUM_BYTES : end] = crc32c(bytes(data[offset : end - CHECKSUM_BYTES]))
            checksums[number * CHECKSUM_BYTES : (number + 1) * CHECKSUM_BYTES] = data[end - CHECKSUM_BYTES : end]
    index = bytes(data[start + len(checksums) : -CHECKSUM_BYTES])
    data[start:] = bytes(checksums) + index + crc32c(index)
    file.write_bytes(data)
    return sha256_hex(bytes(data[start:]))


def chunks_of(file: Path, n: int) -> list[bytes]:
    """The chunks of a shard without their checksums."""
    data = file.read_bytes()
    return [data[offset : offset + size - CHECKSUM_BYTES] for offset, size in read_index_of(data, n)]


def recode(path: Path, array: str, change: Callable[[Any], Any], column: str = "", part: int = 0) -> None:
    """Change the numbers of an array, or of a column of the array `row`, in place, and seal the cache again."""
    folder = path / layout.part_dir(part)
    metadata = json.loads((folder / layout.array_metadata(array)).read_bytes())
    file, n = folder / layout.array_shard(array), n_chunks(metadata)
    columns = [c["name"] for c in json.loads((path / layout.MANIFEST).read_bytes())["arrays"]["row"]["columns"]]
    chunks = chunks_of(file, n)
    mine = slice(columns.index(column), None, len(columns)) if column else slice(None)
    plain = metadata["data_type"] == "uint8"
    parts = [np.frombuffer(c, np.uint8) if plain else standalone.simple_decompress(c) for c in chunks[mine]]
    length = parts[0].size
    values = np.concatenate(parts).reshape((-1, metadata["shape"][1]) if plain else -1)
    values = change(values.copy()).reshape(-1)
    cut = [values[i : i + length] for i in range(0, len(values), length)]
    chunks[mine] = [c.tobytes() if plain else Pcodec(level=8).encode(c.astype(np.uint32)) for c in cut]
    write_shard(file, chunks)
    if column:
        sizes = [sum(len(c) + CHECKSUM_BYTES for c in chunks[i :: len(columns)]) for i in range(len(columns))]
        edit_json(folder / layout.PART_RECORD, lambda r: r.update(column_bytes=dict(zip(columns, sizes, strict=True))))
    reseal(path)


def write_shard(file: Path, chunks: list[bytes]) -> None:
    """A shard of the given chunks, which get their checksums."""
    body = [chunk + crc32c(chunk) for chunk in chunks]
    sizes = [len(chunk) for chunk in body]
    index = np.stack([np.cumsum(sizes) - sizes, sizes], axis=1).astype("<u8").tobytes()
    checksums = b"".join(chunk[-CHECKSUM_BYTES:] for chunk in body)
    file.write_bytes(b"".join(body) + checksums + index + crc32c(index))


def rebuild_index(path: Path, manifest_sha256: str, records: list[tuple[dict[str, Any], bytes]]) -> None:
    """Write index.parquet from the parts' records, whatever these claim."""
    digests = [sha256_hex(data) for _, data in records]
    n_bytes = [sum(f["bytes"] for f in record["files"].values()) + len(data) for record, data in records]
    columns: dict[str, list[Any]] = {name: [record[name] for record, _ in records] for name in COUNTS[:-1]}
    columns |= {"part": [record["part"] for record, _ in records], "n_bytes": n_bytes, "sha256": digests}
    columns["split"] = [record["split"] for record, _ in records]
    identity = sha256_hex(canonical({"manifest": manifest_sha256, "parts": digests}))
    write_index_file(path, FIELDS, columns, {"kdpipe.cache_id": identity, "kdpipe.format": f"{MAJOR}.{MINOR}"})


def write_index_file(path: Path, fields: Any, columns: Mapping[str, Any], notes: Mapping[str, str]) -> None:
    """An index of any columns and notes, whose own digest holds."""
    buffer = io.BytesIO()
    write_parquet(buffer, fields, columns, {**notes, SEAL.decode(): NO_SEAL.decode()})
    (path / layout.INDEX).write_bytes(sealed(buffer.getvalue()))


def shards_of(path: Path) -> Iterator[tuple[Path, int]]:
    """Every shard of a cache and its number of chunks."""
    for metadata in sorted(path.glob("parts/*/targets.zarr/*/zarr.json")):
        described = json.loads(metadata.read_bytes())
        for file in sorted((metadata.parent / "c").rglob("0")):
            if file.is_file():
                yield file, n_chunks(described)
