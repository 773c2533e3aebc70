"""A shard finds every chunk by its number, and refuses an index that differs from the one written."""

import hashlib
import io
from collections.abc import Sequence

import numpy as np
import pytest

from kdpipe.cache.format.codecs import crc32c
from kdpipe.cache.format.shards import Shard, ShardWriter
from kdpipe.schemas.errors import CacheDamaged

BODIES = [b"first", b"the second one", b"3", b"fourth chunk"]
CHUNKS = [body + crc32c(body) for body in BODIES]
N = len(CHUNKS)


def written(order: Sequence[int] = range(N)) -> tuple[bytes, str]:
    file = io.BytesIO()
    writer = ShardWriter(file)
    for number in order:
        writer.add(number, BODIES[number])
    sha256 = writer.finish(N)
    return file.getvalue(), sha256


def opened(data: bytes, sha256: str, n_chunks: int = N) -> Shard:
    return Shard(memoryview(data), n_chunks, sha256)


def with_index(places: list[tuple[int, int]], data: bytes) -> tuple[bytes, str]:
    """A shard with another index, all its digests corrected."""
    index = np.array(places, "<u8").tobytes()
    tail = data[-N * 20 - 4 : -N * 16 - 4] + index + crc32c(index)
    return data[: -N * 20 - 4] + tail, hashlib.sha256(tail).hexdigest()


def places_in(data: bytes) -> list[tuple[int, int]]:
    found = np.frombuffer(data[-N * 16 - 4 : -4], "<u8").reshape(N, 2).tolist()
    return [(a, b) for a, b in found]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_chunks_are_found_by_number_in_any_order_of_writing(order: tuple[int, ...]) -> None:
    shard = opened(*written(order))
    assert [shard.chunk(number) for number in range(N)] == [chunk[:-4] for chunk in CHUNKS]
    assert len(shard) == N
    assert shard.sizes.tolist() == [len(chunk) for chunk in CHUNKS]


def test_a_shard_is_laid_out_as_specified() -> None:
    data, sha256 = written()
    body = b"".join(CHUNKS)
    checksums = b"".join(chunk[-4:] for chunk in CHUNKS)
    starts = np.cumsum([0, *map(len, CHUNKS)])[:-1]
    index = np.stack([starts, [len(chunk) for chunk in CHUNKS]], axis=1).astype("<u8").tobytes()
    assert data == body + checksums + index + crc32c(index)
    assert sha256 == hashlib.sha256(data[len(body) :]).hexdigest()


def test_a_grid_with_a_hole_is_never_finished() -> None:
    writer = ShardWriter(io.BytesIO())
    writer.add(1, BODIES[1])
    with pytest.raises(AssertionError, match="every chunk of the grid"):
        writer.finish(2)


def test_every_flipped_bit_is_noticed_before_a_chunk_is_returned() -> None:
    data, sha256 = written()
    ends = np.cumsum([len(chunk) for chunk in CHUNKS])
    own_copies = {place for end in ends.tolist() for place in range(end - 4, end)}
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 16
        with pytest.raises(CacheDamaged):
            shard = opened(bytes(damaged), sha256)
            for number in range(N):
                assert shard.chunk(number) == CHUNKS[number][:-4]
            # Only a chunk's own copy of its checksum may differ: it is there for zarr, the tail's copy decides.
            assert place in own_copies
            raise CacheDamaged("only correct data was returned")


@pytest.mark.parametrize("length", [0, 1, 50, N * 20 + 3])
def test_a_shard_shorter_than_its_index_is_refused(length: int) -> None:
    with pytest.raises(CacheDamaged, match=f"{length} bytes .* 4 chunks"):
        opened(written()[0][:length], "0" * 64)


def test_an_index_with_another_sha256_than_part_json_is_refused() -> None:
    data, _ = written()
    with pytest.raises(CacheDamaged, match="sha256"):
        opened(data, hashlib.sha256(b"another").hexdigest())


def test_an_index_without_its_checksum_is_refused() -> None:
    data, _ = written()
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(CacheDamaged, match="does not match its crc32c"):
        opened(damaged, hashlib.sha256(damaged[-N * 20 - 4 :]).hexdigest())


def test_two_chunks_exchanged_in_the_index_are_noticed_when_read() -> None:
    data, _ = written()
    a, b, c, d = places_in(data)
    shard = opened(*with_index([b, a, c, d], data))
    for number in (0, 1):
        with pytest.raises(CacheDamaged, match="a chunk does not match its crc32c"):
            shard.chunk(number)
    assert shard.chunk(2) == CHUNKS[2][:-4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: [(2**64 - 1, 2**64 - 1), *p[1:]], "names a missing chunk"),
        (lambda p: [*p[:3], (p[3][0], p[3][1] + 1)], "overlap or leave gaps"),
        (lambda p: [*p[:3], (10**6, 5)], "one outside the file"),
        (lambda p: [p[0], p[0], p[2], p[3]], "overlap or leave gaps"),
        (lambda p: [(p[0][0] + 1, p[0][1] - 1), *p[1:]], "overlap or leave gaps"),
        (lambda p: [(p[0][0], p[0][1] - 1), *p[1:]], "overlap or leave gaps"),
        (lambda p: [(0, 4), (4, p[0][1] + p[1][1] - 4), *p[2:]], "overlap or leave gaps"),
        (lambda p: [(0, 0), (0, p[0][1] + p[1][1]), *p[2:]], "overlap or leave gaps"),
        (lambda p: [(0, 2**63), (2**63, p[0][1] + p[1][1]), *p[2:]], "outside the file"),
    ],
)
def test_an_index_that_does_not_fill_the_file_is_refused(change: "object", message: str) -> None:
    assert callable(change)
    data, _ = written()
    with pytest.raises(CacheDamaged, match=message):
        opened(*with_index(change(places_in(data)), data))


def test_a_shard_with_bytes_outside_its_chunks_is_refused() -> None:
    data, sha256 = written()
    with pytest.raises(CacheDamaged, match="overlap or leave gaps"):
        opened(data[: -N * 20 - 4] + b"\0" + data[-N * 20 - 4 :], sha256)
