"""JSON is read strictly, within bounds, and written in one way only."""

import hashlib
from pathlib import Path

import pytest

from kdpipe.schemas.errors import FileDamaged
from kdpipe.schemas.strict_json import MAX_DEPTH, MAX_KEYS, canonical, parse, sha256_file, sha256_hex


def test_canonical_json_is_sorted_tight_and_ends_with_a_line() -> None:
    assert (
        canonical({"b": [1, 2.5, None, True], "a": {"é": "ü\n"}})
        == '{"a":{"é":"ü\\n"},"b":[1,2.5,null,true]}\n'.encode()
    )
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical([number])


@pytest.mark.parametrize("value", [{}, [], 1, -0.5, 1e300, "x", None, {"a": [{"b": "🙂"}]}, 2**80])
def test_what_is_written_is_read(value: object) -> None:
    assert parse(canonical(value), "here") == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a":1,"b":2,"a":3}', "here is not strict JSON: duplicate key 'a'"),
        (b'{"x":[{"a":1,"a":1}]}', "duplicate key 'a'"),
        (b"[NaN]", "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"[1e999]", "1e999 is too large for a number"),
        (b"", "here is not strict JSON: Expecting value"),
        (b"{", "here is not strict JSON: Expecting property name"),
        (b"[1] x", "here is not strict JSON: Extra data"),
        (b'["\xff"]', "here is not strict JSON: 'utf-8' codec can't decode"),
        (b'["\\ud800"]', "here is not strict JSON: .*surrogates not allowed"),
        (b"[" * 40 + b"]" * 40, f"here is nested deeper than {MAX_DEPTH} levels"),
        (b"[" * 200_000, "here is not strict JSON"),
        (b"[" + b"9" * 5000 + b"]", "here is not strict JSON: Exceeds the limit"),
        (b"{" + b",".join(b'"%d":1' % n for n in range(MAX_KEYS + 1)) + b"}", "an object has 4,097 keys"),
    ],
)
def test_anything_else_than_strict_json_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(FileDamaged, match=message):
        parse(data, "here")


def test_bounds_hold_at_their_edges() -> None:
    parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, "here")
    with pytest.raises(FileDamaged, match="nested deeper"):
        parse(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "here")
    assert parse(b"[1,2]", "here", max_bytes=5) == [1, 2]
    with pytest.raises(FileDamaged, match=r"5 bytes.*most 4.*allowed"):
        parse(b"[1,2]", "here", max_bytes=4)
    assert len(parse(b"{" + b",".join(b'"%d":1' % n for n in range(MAX_KEYS)) + b"}", "here")) == MAX_KEYS


def test_digests_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "x") == sha256_hex(b"abc" * 100_000) == hashlib.sha256(b"abc" * 100_000).hexdigest()
