"""Codec candidates for every array of a cache: bytes per position, encoding and decoding rates on one core.

In: `--positions N`, `--json`. Out: a table, or one JSON document, on stdout; progress on stderr.

Sizes include each chunk's checksum and index entry (20 bytes). Rates are millions of numbers per second with
checksums; `copy` is the decode rate as a share of the rate at which the decoded numbers (4 bytes each) are copied.
`block` is the time for 1,024 positions at a random place: the chunks they touch on average, at the decode rate.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numcodecs
import numpy as np
from codec_streams import (
    Codes,
    Stream,
    column_streams,
    id_streams,
    logprob_streams,
    take_sample,
    times_streams,
    vector_streams,
)
from pcodec import ChunkConfig, standalone

from kdpipe.cache.format.codecs import Pcodec, checked, crc32c
from support.synthetic import Recipe

INDEX_BYTES = 16
REPEATS = 5
BLOCK_POSITIONS = 1024


def opened(chunk: bytes) -> bytes:
    """The payload of a chunk, checked against its trailing checksum."""
    return checked(memoryview(chunk)[:-4], int.from_bytes(chunk[-4:], "little"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """A candidate codec; `decode` fills a given buffer."""

    name: str
    encode: Callable[[Codes], bytes]
    decode: Callable[[bytes, Codes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One stream through one codec in chunks of one size."""

    vocabulary: int
    targets: str
    array: str
    layout: str
    stored: bool
    codec: str
    chunk: int
    bytes_per_position: float
    order0_bytes_per_position: float
    encode_mega_per_second: float
    decode_mega_per_second: float
    decode_to_copy: float
    block_microseconds: float


def pcodec(level: int) -> Codec:
    """The cache's own codec."""
    codec = Pcodec(level=level)

    def encode(chunk: Codes) -> bytes:
        data = codec.encode(chunk)
        return data + crc32c(data)

    return Codec(name=f"pcodec {level}", encode=encode, decode=lambda data, into: codec.decode(opened(data), into))


def pcodec_auto(level: int) -> Codec:
    """pcodec with automatic choice of mode and differences."""
    config = ChunkConfig(compression_level=level)

    def encode(chunk: Codes) -> bytes:
        data = bytes(standalone.simple_compress(chunk, config))
        return data + crc32c(data)

    return Codec(name=f"pcodec {level}, automatic", encode=encode, decode=pcodec(level).decode)


def of_bytes(name: str, codec: Any, *, difference: bool = False) -> Codec:
    """A codec of numcodecs over the narrowest type for a chunk; the first byte is its width."""

    def encode(chunk: Codes) -> bytes:
        values = np.diff(chunk, prepend=chunk.dtype.type(0)) if difference else chunk
        width = 1 if values.max() < 1 << 8 else 2 if values.max() < 1 << 16 else 4
        narrow = values.astype(f"<u{width}")
        data = bytes([width]) + bytes(codec.encode(narrow) if codec else narrow.tobytes())
        return data + crc32c(data)

    def decode(data: bytes, into: Codes) -> None:
        body = opened(data)
        values = np.frombuffer(codec.decode(body[1:]) if codec else body[1:], f"<u{body[0]}")
        if difference:
            np.cumsum(values, out=into, dtype=np.uint32)
        else:
            into[:] = values

    return Codec(name=name, encode=encode, decode=decode)


def bit_packed(chunk: Codes) -> bytes:
    """Bit packing at the width of the largest number of the chunk; slow to encode in numpy."""
    width = max(1, int(chunk.max()).bit_length())
    bits = (chunk[:, None] >> np.arange(width, dtype=np.uint32)).astype(np.uint8) & 1
    data = bytes([width]) + np.packbits(bits, bitorder="little").tobytes()
    return data + crc32c(data)


def bit_unpacked(data: bytes, into: Codes) -> None:
    """The inverse of `bit_packed`."""
    body = opened(data) + bytes(8)
    width = body[0]
    raw = np.frombuffer(body, np.uint8)[1:]
    windows = np.lib.stride_tricks.as_strided(raw[:8].view("<u8"), (len(raw) - 7,), (1,))
    places = np.arange(len(into)) * width
    into[:] = (windows[places >> 3] >> (places & 7).astype(np.uint64)) & np.uint64((1 << width) - 1)


def others() -> list[Codec]:
    """Other common codecs."""
    blosc = numcodecs.Blosc
    return [
        pcodec_auto(8),
        Codec(name="bits", encode=bit_packed, decode=bit_unpacked),
        of_bytes("plain", None),
        of_bytes("lz4", numcodecs.LZ4()),
        of_bytes("zstd 3", numcodecs.Zstd(3)),
        of_bytes("zstd 3, differences", numcodecs.Zstd(3), difference=True),
        of_bytes("blosc zstd 3 shuffle", blosc("zstd", 3, blosc.SHUFFLE)),
        of_bytes("blosc zstd 3 bitshuffle", blosc("zstd", 3, blosc.BITSHUFFLE)),
        of_bytes("blosc lz4 bitshuffle", blosc("lz4", 5, blosc.BITSHUFFLE)),
    ]


def order0_bytes(stream: Stream) -> float:
    """The order-0 entropy of all pieces in bytes."""
    total = 0.0
    for piece in stream.pieces:
        counts = np.bincount(piece) if piece.max() < 1 << 24 else np.unique(piece, return_counts=True)[1]
        counts = counts[counts > 0]
        total += float((counts * np.log2(len(piece) / counts)).sum()) / 8
    return total


def best_seconds(action: Callable[[], None], repeats: int = REPEATS) -> float:
    """The shortest of a few runs, to exclude other load."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


@lru_cache
def copies_per_second(chunk: int) -> float:
    """Numbers per second of chunk-wise copies from 64 MiB: an upper bound for decoders."""
    numbers, into = np.arange(1 << 24, dtype=np.uint32), np.empty(chunk, np.uint32)

    def copy() -> None:
        for start in range(0, len(numbers) - chunk + 1, chunk):
            into[:] = numbers[start : start + chunk]

    return len(numbers) / best_seconds(copy, 9)


def measure(stream: Stream, codec: Codec, chunk: int, n_positions: int) -> dict[str, Any]:
    """Size and rates of a stream in chunks, with a round-trip check."""
    chunks = [piece[i : i + chunk] for piece in stream.pieces for i in range(0, len(piece), chunk)]
    into = np.empty(chunk, np.uint32)
    encoded: list[bytes] = []

    def encode() -> None:
        encoded[:] = [codec.encode(values) for values in chunks]

    def decode() -> None:
        for data, values in zip(encoded, chunks, strict=True):
            codec.decode(data, into[: len(values)])

    n = sum(map(len, chunks))
    in_block = BLOCK_POSITIONS * n / n_positions
    encode_seconds = best_seconds(encode, 2)
    decode_seconds = best_seconds(decode)
    for data, values in zip(encoded, chunks, strict=True):
        codec.decode(data, into[: len(values)])
        assert np.array_equal(into[: len(values)], values), codec.name
    return {
        "bytes": sum(map(len, encoded)) + INDEX_BYTES * len(encoded),
        "encode_mega_per_second": n / encode_seconds / 1e6,
        "decode_mega_per_second": n / decode_seconds / 1e6,
        "decode_to_copy": n / decode_seconds / copies_per_second(chunk),
        "block_microseconds": (1 + (in_block - 1) / chunk) * chunk / n * decode_seconds * 1e6,
    }


def trials(stream: Stream) -> list[tuple[Codec, int]]:
    """All codecs for a stored layout, the default codec for an alternative."""
    if stream.array in ("id", "times", "logprob"):
        if not stream.stored:
            return [(pcodec(8), 16384)]
        sizes = [(pcodec(8), size) for size in (4096, 8192, 32768, 65536)]
        return [*((pcodec(level), 16384) for level in (4, 6, 8, 12)), *sizes, *((codec, 16384) for codec in others())]
    if stream.array in ("hidden", "state"):
        return [(codec, 1 << 16) for codec in (*others(), pcodec(8))]
    if not stream.stored:
        return [(pcodec(8), 2048)]
    sizes = [(pcodec(8), size) for size in (512, 1024, 2048, 4096)]
    return [*sizes, *((pcodec(level), 2048) for level in (4, 6)), *((codec, 2048) for codec in others())]


def run(recipe: Recipe, targets: str, n_positions: int) -> list[Result]:
    """All trials on the cache of one recipe."""
    sample = take_sample(recipe, n_positions)
    streams = [*id_streams(sample), *(times_streams(sample) if recipe.kind == "sampled" else logprob_streams(sample))]
    if recipe.kind == "threshold":
        streams += [*column_streams(sample), *vector_streams(sample)]
    results = []
    for stream in streams:
        print(f"{recipe.vocabulary_size} {targets}: {stream.array}, {stream.layout}", file=sys.stderr)
        order0 = order0_bytes(stream) / sample.n_positions
        for codec, chunk in trials(stream):
            measured = measure(stream, codec, chunk, sample.n_positions)
            results.append(
                Result(
                    vocabulary=recipe.vocabulary_size,
                    targets=targets,
                    array=stream.array,
                    layout=stream.layout,
                    stored=stream.stored,
                    codec=codec.name,
                    chunk=chunk,
                    bytes_per_position=measured.pop("bytes") / sample.n_positions,
                    order0_bytes_per_position=order0,
                    **measured,
                )
            )
    return results


def table(results: list[Result]) -> str:
    """One line per trial, one heading per stream."""
    lines, heading = [], ""
    for result in results:
        title = f"{result.vocabulary:,} ids, {result.targets}: {result.array}, {result.layout}"
        if title != heading:
            lines += ["", f"{title} (order-0 entropy {result.order0_bytes_per_position:.3f} bytes per position)"]
            heading = title
        lines.append(
            f"  {result.codec:24} {result.chunk:6} {result.bytes_per_position:9.3f} B"
            f" {result.encode_mega_per_second:8.1f} M/s in {result.decode_mega_per_second:8.1f} M/s out"
            f" {result.decode_to_copy:7.3f} copy {result.block_microseconds:7.1f} us per block"
        )
    return "\n".join(lines[1:])


def main() -> None:
    """Run all trials and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=200_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    numcodecs.blosc.set_nthreads(1)
    results = []
    for size in (32_000, 152_000):
        common = {"vocabulary_size": size, "documents": {"train": 100_000}, "hidden_width": 64, "boundary": True}
        results += run(Recipe(**common), "threshold 1/25", arguments.positions)
        results += run(Recipe(kind="topk", top_k=64, **common), "topk 64", arguments.positions // 8)
        results += run(Recipe(kind="sampled", draws=50, **common), "50 draws", arguments.positions // 4)
    if arguments.json:
        machine = {"machine": platform.machine(), "python": platform.python_version()}
        versions = {name: version(name) for name in ("numpy", "numcodecs", "pcodec")}
        print(json.dumps({"machine": machine | versions, "results": [asdict(result) for result in results]}))
    else:
        print(table(results))


if __name__ == "__main__":
    main()
