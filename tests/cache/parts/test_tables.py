"""Tables come back as they were fitted, bfloat16 rounded to nearest even, and every wrong one is refused."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.cache import open_cache
from kdpipe.cache.opening import create_cache
from kdpipe.cache.parts.tables import from_bfloat16, to_bfloat16
from kdpipe.schemas.errors import CacheDamaged, CacheWriteError
from kdpipe.schemas.target_kinds import State
from support import tiny
from support.arbitrary import Wish, write


def wish_for(dtype: Any) -> Wish:
    return Wish(keep=State(width=6, group=4, head_bias=True, head_dtype=dtype), vocabulary_size=9)


def bits_of(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def number_of(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    high=st.integers(0, 0x7F7E),
    low=st.sampled_from([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]),
    negative=st.booleans(),
)
def test_bfloat16_is_the_nearest_number_and_the_even_one_of_two(high: int, low: int, negative: bool) -> None:
    value = number_of((high << 16 | low) | (1 << 31 if negative else 0))
    below, above = number_of(high << 16), number_of(high + 1 << 16)
    size = abs(value)
    nearest = below if size - below < above - size else above if above - size < size - below else None
    if nearest is None:
        nearest = below if high % 2 == 0 else above
    stored = to_bfloat16(np.array([value], np.float32))
    assert stored.dtype == np.dtype("<u2")
    back = from_bfloat16(stored)
    assert back.dtype == np.float32
    assert bits_of(float(back[0])) == bits_of(-nearest if negative else nearest)


@pytest.mark.parametrize(("dtype", "digits"), [("float32", 0.0), ("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_an_output_head_comes_back_in_its_precision(tmp_path: Path, dtype: str, digits: float) -> None:
    wish = wish_for(dtype)
    wish.tables["output_head"] = np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32)
    cache = open_cache(write(tmp_path / "c", wish))
    for name in ("output_head", "output_bias", "ids_by_rank"):
        precision = digits if name == "output_head" else 0.0
        np.testing.assert_allclose(cache.table(name).astype(np.float64), wish.tables[name], rtol=precision)
    exact = (cache.table("output_head") == wish.tables["output_head"]).all()
    assert exact == (dtype == "float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_bias": None}, r"tables are \['ids_by_rank', 'output_head'\], the manifest names"),
        ({"more": np.zeros(3)}, r"tables are \['ids_by_rank', 'more'"),
        ({"output_head": np.zeros((6, 9))}, r"table output_head has the shape \(6, 9\), the manifest has \(9, 6\)"),
        ({"ids_by_rank": np.zeros(9, np.uint32)}, r"tables/ids_by_rank\.bin does not name every id of the vocabulary"),
        ({"ids_by_rank": np.arange(1, 10)}, r"tables/ids_by_rank\.bin does not name every id of the vocabulary"),
    ],
)
def test_tables_that_are_not_those_of_the_manifest_are_not_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    wish = wish_for("float32")
    tables = {name: table for name, table in {**wish.tables, **change}.items() if table is not None}
    with tiny.unsynced():
        writer = create_cache(tmp_path / "c", wish.manifest)
        with pytest.raises(CacheWriteError, match=message):
            writer.publish_tables(tables)
        assert not writer.has_tables
        with pytest.raises(CacheWriteError, match="the tables are not published yet"), writer.part(0):
            pass


def test_a_table_that_is_not_the_one_that_its_parts_state_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "c", wish_for("bfloat16"))
    tiny.flip_bit(path / "tables/output_head.bin", 7)
    cache = open_cache(path)
    assert cache.table("output_bias").shape == (9,)
    with pytest.raises(CacheDamaged, match=r"tables/output_head\.bin does not match the digest that the parts state"):
        cache.dense(0)
    tiny.flip_bit(path / "tables/ids_by_rank.bin", 0)
    with pytest.raises(CacheDamaged, match=r"tables/ids_by_rank\.bin does not match the digest"):
        open_cache(path)[0]
    tiny.truncate(path / "tables/output_bias.bin", 4)
    with pytest.raises(CacheDamaged, match=r"tables/output_bias\.bin has 32 bytes, expected 36"):
        open_cache(path).table("output_bias")
