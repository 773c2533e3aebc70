"""zarr.json: what tells zarr-python how to read a part. Made here from the manifest, compared on reading, never
trusted.

In: the manifest and the number of rows and entries of a part. Out: the exact bytes of each zarr.json.
"""

from dataclasses import dataclass
from typing import Any

from kdpipe.schemas.arrays import VectorArray
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.strict_json import canonical

GROUP = canonical({"attributes": {}, "node_type": "group", "zarr_format": 3})


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayGrid:
    """The shape of an array and of its chunks; `level` is None for bytes that are stored as they are."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    level: int | None

    @property
    def n_chunks(self) -> int:
        """Chunks of the grid."""
        count = 1
        for length, size in zip(self.shape, self.chunk, strict=True):
            count *= -(-length // size)
        return count

    def to_json(self) -> bytes:
        """The zarr.json of this array."""
        shard = [max(1, -(-length // size)) * size for length, size in zip(self.shape, self.chunk, strict=True)]
        plain = {"name": "bytes"}
        coded = {"name": "numcodecs.pcodec", "configuration": {"level": self.level}}
        index_codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding: dict[str, Any] = {
            "chunk_shape": list(self.chunk),
            "codecs": [plain if self.level is None else coded, {"name": "crc32c"}],
            "index_codecs": index_codecs,
            "index_location": "end",
        }
        return canonical(
            {
                "attributes": {},
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
                "data_type": "uint8" if self.level is None else "uint32",
                "fill_value": 0,
                "node_type": "array",
                "shape": list(self.shape),
                "storage_transformers": [],
                "zarr_format": 3,
            }
        )


def grids(manifest: Manifest, n_rows: int, n_exact: int, n_draws: int) -> dict[str, ArrayGrid]:
    """The grid of every array of a part."""
    arrays = manifest.arrays
    row = arrays.row
    found = {"row": ArrayGrid(shape=(n_rows, len(row.columns)), chunk=(row.chunk_rows, 1), level=row.level)}
    n_values = n_exact + (n_draws if manifest.targets.draw_values else 0)
    for name, array, length in (
        ("id", arrays.id, n_exact + n_draws),
        ("times", arrays.times, n_draws),
        ("logprob", arrays.logprob, n_values),
    ):
        if array is not None:
            found[name] = ArrayGrid(shape=(length,), chunk=(array.chunk_entries,), level=array.level)
    for name, vectors in (("hidden", arrays.hidden), ("state", arrays.state)):
        if isinstance(vectors, VectorArray):
            found[name] = ArrayGrid(
                shape=(n_rows, vectors.row_bytes), chunk=(vectors.chunk_rows, vectors.row_bytes), level=None
            )
    return found
