"""zarr.json, which describes a part to zarr-python. Computed from the manifest, compared on reading, never trusted.

In: the manifest and the number of rows and entries of a part. Out: the exact bytes of each zarr.json.
"""

from dataclasses import dataclass
from typing import Any

from kdpipe.cache.format.codecs import Codec, codec_of
from kdpipe.schemas.arrays import NumberArray, VectorArray
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.strict_json import canonical

GROUP = canonical({"attributes": {}, "node_type": "group", "zarr_format": 3})


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayGrid:
    """The shape of an array and of its chunks, and how a chunk is stored; `by_column`: one column per chunk."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    codec: Codec
    by_column: bool = False

    @property
    def n_chunks(self) -> int:
        count = 1
        for length, size in zip(self.shape, self.chunk, strict=True):
            count *= -(-length // size)
        return count

    @property
    def n_columns(self) -> int:
        """Columns that are stored in chunks of their own."""
        return self.shape[1] if self.by_column else 1

    def to_json(self) -> bytes:
        """The zarr.json of this array."""
        shard = [max(1, -(-length // size)) * size for length, size in zip(self.shape, self.chunk, strict=True)]
        options = {"configuration": self.codec.configuration} if self.codec.configuration else {}
        index_codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding: dict[str, Any] = {
            "chunk_shape": list(self.chunk),
            "codecs": [{"name": self.codec.zarr_name, **options}, {"name": "crc32c"}],
            "index_codecs": index_codecs,
            "index_location": "end",
        }
        return canonical(
            {
                "attributes": {},
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
                "data_type": self.dtype,
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
    by_name = {"row": _grid(row, (n_rows, len(row.columns)), (row.chunk_rows, 1), by_column=True)}
    n_values = n_exact + (n_draws if manifest.targets.draw_values else 0)
    for name, array, length in (
        ("id", arrays.id, n_exact + n_draws),
        ("times", arrays.times, n_draws),
        ("logprob", arrays.logprob, n_values),
    ):
        if array is not None:
            by_name[name] = _grid(array, (length,), (array.chunk_entries,))
    for name, vectors in (("hidden", arrays.hidden), ("state", arrays.state)):
        if vectors is not None:
            by_name[name] = _grid(vectors, (n_rows, vectors.row_bytes), (vectors.chunk_rows, vectors.row_bytes))
    return by_name


def _grid(
    array: NumberArray | VectorArray, shape: tuple[int, ...], chunk: tuple[int, ...], *, by_column: bool = False
) -> ArrayGrid:
    return ArrayGrid(shape=shape, chunk=chunk, dtype=array.dtype, codec=codec_of(array), by_column=by_column)
