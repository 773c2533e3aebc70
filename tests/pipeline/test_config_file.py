"""Configuration files: YAML 1.2 and JSON in, plain values out, and every oddity refused with its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.config_file import MAX_BYTES, as_yaml, read_file, read_value
from kdpipe.schemas.errors import ConfigError


def written(tmp_path: Path, text: str | bytes, name: str = "kd.yaml") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E3", 1000.0), (".5", 0.5), ("-2.", -2.0), ("010", 10), ("+7", 7), ("no", "no"),
        ("on", "on"), ("true", True), ("False", False), ("~", None), ("", None), ("null", None), ("1_000", "1_000"),
        ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("0x10", "0x10"), (".nan", ".nan"), (".inf", ".inf"),
        ("<<", "<<"), ("=", "="), ("[1, a]", [1, "a"]), ("{a: [~]}", {"a": [None]}), ('"1"', "1"),
        ("1.2.3", "1.2.3"), ("e5", "e5"),
    ],
)  # fmt: skip
def test_a_value_is_read_as_yaml_1_2_reads_it(text: str, value: Any) -> None:
    read = read_value(text)
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize(
    "text", ["[", "{a", "*x", "&x 1", "!!python/name:os.system", "!!binary aGk=", "a: b: c", "{a: 1, a: 2}", "!!int x"]
)
def test_what_is_no_plain_value_is_refused(text: str) -> None:
    if text == "&x 1":
        assert read_value(text) == 1  # an unused anchor is harmless
        return
    with pytest.raises(ValueError, match=r"not a valid value|invalid literal"):
        read_value(text)


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    value = {"data": {"path": "a", "limit": 3}, "targets": {"temperatures": [2.0], "tau": None}, "seed": 1}
    block = "data:\n  path: a\n  limit: 3\n# a remark\ntargets: {temperatures: [2.0], tau: ~}\nseed: 1\n"
    assert read_file(written(tmp_path, block)) == value
    assert read_file(written(tmp_path, b"\xef\xbb\xbf" + block.encode())) == value
    assert read_file(written(tmp_path, json.dumps(value, indent="\t"), "kd.json")) == value
    assert read_file(written(tmp_path, json.dumps(value, indent=2))) == value


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert read_file(written(tmp_path, "# only a remark\n")) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", ", line 2, column 1: duplicate key 'seed'"),
        ("data:\n  limit: 1\n  limit: 1\n", ", line 3, column 3: duplicate key 'limit'"),
        ("a: &x [1]\nb: *x\n", ", line 2, column 4: aliases are not supported: write the value out"),
        ("1: x\n", ", line 1, column 1: a name must be text"),
        ("? [a]\n: x\n", ", line 1, column 3: a name must be text"),
        ("seed: [1\n", ", line 2, column 1: expected ',' or ']', but got '<stream end>'"),
        ("seed: !!python/object:os.x {}\n", ", line 1, column 7: could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", ", line 2, column 1: but found another document"),
        ("- a\n", " is not a mapping of settings"),
        ("just words\n", " is not a mapping of settings"),
        ("a: !!int x\n", " is not YAML: invalid literal"),
        ("a: \x01\n", " is not YAML: unacceptable character"),
        (b"a: \xff\n", " is not UTF-8: byte 3"),
        ("a: " + "[" * 5000, " is not YAML: "),
        ("#" * (MAX_BYTES + 1), " is larger than 1,048,576 bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_malformed_file_is_refused_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        read_file(path)
    assert refused.value.message.startswith(f"the file {path}{message}")


@pytest.mark.parametrize("text", ['{"seed": 1, "seed": 2}', '{"seed": NaN}', "{", "seed: 1"])
def test_a_json_file_is_strict(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text, "kd.json")
    with pytest.raises(ConfigError, match="is not strict JSON"):
        read_file(path)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"kd\.yaml cannot be read: No such file or directory"):
        read_file(tmp_path / "kd.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_file(tmp_path)


def test_aliases_cannot_grow_a_file_into_a_gigabyte(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    with pytest.raises(ConfigError, match="aliases are not supported"):
        read_file(written(tmp_path, "\n".join(lines)))


@pytest.mark.parametrize(
    "value",
    [
        0,
        -3,
        2e-05,
        1e22,
        0.1,
        1.0,
        True,
        None,
        "yes",
        "no",
        "1e-3",
        "12",
        "null",
        "~",
        "",
        "a: b",
        "# c",
        "ü\n",
        [],
        [1, "2"],
    ],
)
def test_what_is_written_reads_as_the_same(value: Any, tmp_path: Path) -> None:
    settings = {"one": value, "two": {"three": [value, value]}}
    (tmp_path / "config.yaml").write_text(as_yaml(settings), encoding="utf-8")
    read = read_file(tmp_path / "config.yaml")
    assert read == settings and type(read["one"]) is type(value)
