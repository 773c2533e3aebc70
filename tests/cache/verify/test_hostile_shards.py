"""Shards that were made to do harm, all checksums right: chunks that hold something else, places outside the file."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pcodec import ChunkConfig, standalone

from kdpipe.cache import layout
from support.damage import chunks_of, edit_json, fresh_cache, n_chunks, read_index_of, reseal, tail_bytes, write_shard
from support.limits import assert_refused, judged

PART = layout.part_dir(0)
RECORD = f"{PART}/{layout.PART_RECORD}"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of the default kind, to be edited."""
    return fresh_cache(tmp_path / "cache")


def edit_shard(cache: Path, array: str, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    """Other chunks in a shard, with all checksums right."""
    file = cache / PART / layout.array_shard(array)
    n = len(chunks_of(file, count_of(cache, array)))
    write_shard(file, edit(chunks_of(file, n)))
    reseal(cache)


def count_of(cache: Path, array: str) -> int:
    """The chunks of an array, by the size of what it holds."""
    return n_chunks(json.loads((cache / PART / layout.array_metadata(array)).read_bytes()))


def coded(numbers: Any) -> bytes:
    """Numbers through pcodec."""
    return bytes(standalone.simple_compress(numbers, ChunkConfig()))


CHUNKS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a chunk of a million zeros": ("id", lambda: coded(np.zeros(1 << 20, np.uint32)), "more numbers than"),
    "a chunk of sixteen million zeros": ("row", lambda: coded(np.zeros(1 << 24, np.uint32)), "more numbers than"),
    "a short chunk": ("id", lambda: coded(np.zeros(63, np.uint32)), "fewer numbers than"),
    "an empty chunk": ("id", lambda: coded(np.zeros(0, np.uint32)), "fewer numbers than"),
    "signed numbers": ("id", lambda: coded(np.zeros(64, np.int32)), "a chunk cannot be decoded"),
    "wide numbers": ("logprob", lambda: coded(np.zeros(64, np.uint64)), "a chunk cannot be decoded"),
    "fractions": ("logprob", lambda: coded(np.zeros(64, np.float32)), "a chunk cannot be decoded"),
    "no numbers at all": ("id", lambda: b"\x00" * 40, "a chunk"),
    "the head of a chunk": ("id", lambda: coded(np.arange(64, dtype=np.uint32))[:9], "a chunk cannot be decoded"),
    "a short plain chunk": ("hidden", lambda: bytes(7), "bytes, its array expects"),
    "a long plain chunk": ("hidden", lambda: bytes(1 << 20), "bytes, its array expects"),
}


@pytest.mark.many
@pytest.mark.parametrize("name", CHUNKS)
def test_a_chunk_that_holds_something_else_is_refused(cache: Path, name: str) -> None:
    array, chunk, fragment = CHUNKS[name]
    edit_shard(cache, array, lambda chunks: [chunk(), *chunks[1:]])
    assert_refused(cache, fragment)


def test_a_chunk_too_few_is_refused(cache: Path) -> None:
    edit_shard(cache, "id", lambda chunks: chunks[1:])
    verdict = judged(cache)
    assert verdict.code == verdict.verify_code == 3


PLACES: dict[str, tuple[Callable[[list[tuple[int, int]]], tuple[int, int]], str]] = {
    "a missing chunk": (lambda p: ((1 << 64) - 1, (1 << 64) - 1), "names a missing chunk"),
    "an offset beyond the file": (lambda p: (1 << 40, p[1][1]), "outside the file"),
    "a size beyond all": (lambda p: (p[1][0], 1 << 40), "outside the file"),
    "an end that wraps around": (lambda p: ((1 << 64) - 8, p[1][1]), "outside the file"),
    "the place of another": (lambda p: p[0], "overlap or leave gaps"),
    "a byte less": (lambda p: (p[1][0], p[1][1] - 1), "overlap or leave gaps"),
    "a byte more": (lambda p: (p[1][0], p[1][1] + 1), "overlap or leave gaps"),
    "no bytes": (lambda p: (p[1][0], 0), "overlap or leave gaps"),
}


@pytest.mark.many
@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("array", ["id", "row", "hidden"])
def test_an_index_of_chunks_outside_the_rules_is_refused(cache: Path, array: str, name: str) -> None:
    change, fragment = PLACES[name]
    file = cache / PART / layout.array_shard(array)
    data, n = bytearray(file.read_bytes()), count_of(cache, array)
    place = len(data) - tail_bytes(n) + 4 * n + 16
    struct.pack_into("<QQ", data, place, *change(read_index_of(bytes(data), n)))
    file.write_bytes(data)
    reseal(cache)
    assert_refused(cache, fragment)


def test_a_shard_too_short_for_its_index_is_refused(cache: Path) -> None:
    file = cache / PART / layout.array_shard("id")
    file.write_bytes(file.read_bytes()[:20])
    edit_json(cache / RECORD, lambda r: r["indexes"].update(id="0" * 64))
    reseal(cache, chunks=False)
    assert_refused(cache, "too short for the index")
