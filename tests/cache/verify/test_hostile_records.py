"""Malicious records, all checksums right: false or malformed manifests and part records."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache import layout
from kdpipe.cache.inspect import inspect_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.strict_json import MAX_BYTES, sha256_hex
from support.damage import edit_json, fresh_cache, reseal
from support.limits import assert_named, assert_refused, judged

PART = layout.part_dir(0)
RECORD = f"{PART}/{layout.PART_RECORD}"
Edit = Callable[[Any], object]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of the default kind, to be edited."""
    return fresh_cache(tmp_path / "cache")


@pytest.mark.parametrize("name", ["../../manifest.json", "..", "c:evil", "/etc/passwd", "targets.zarr/../../x", "a\n"])
def test_a_part_cannot_name_files_outside_itself(cache: Path, name: str) -> None:
    edit_json(cache / RECORD, lambda r: r["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    reseal(cache)
    verdict = judged(cache)
    assert verdict.code == verdict.verify_code == 3
    assert "files" in verdict.message and RECORD in verdict.message


@pytest.mark.many
@pytest.mark.parametrize("name", ["../x.json", "/etc/passwd", ".hidden", "a/b/c", "a/../b", "", "x\n", "x" * 101])
def test_a_manifest_cannot_name_tokenizer_files_outside_their_folder(cache: Path, name: str) -> None:
    edit_manifest(cache, lambda m: m["tokenizer"]["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    assert_refused(cache, "tokenizer.files")


def seed_edit(new: bytes) -> Edit:
    """The seed of the cache, not one of a projection, replaced."""
    return text_edit(b'"seed":0,"tables"', new + b',"tables"')


def edit_manifest(path: Path, edit: Edit) -> None:
    """Change the manifest, and let everything that names it follow."""
    edit_json(path / layout.MANIFEST, edit)
    reseal(path)


def text_edit(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Change the first occurrence of a text in a record."""

    def edit(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return edit


TEXTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a key twice": (seed_edit(b'"seed":1,"seed":0'), "duplicate key 'seed'"),
    "NaN": (seed_edit(b'"seed":NaN'), "is not a JSON number"),
    "minus infinity": (seed_edit(b'"seed":-Infinity'), "is not a JSON number"),
    "a number beyond all": (seed_edit(b'"seed":1e999'), "too large for a number"),
    "an integer of 5,000 digits": (seed_edit(b'"seed":' + b"9" * 5000), "is not strict JSON"),
    "an integer of 4,000 digits": (seed_edit(b'"seed":' + b"9" * 4000), "seed"),
    "a negative seed": (seed_edit(b'"seed":-1'), "seed"),
    "a text for a number": (seed_edit(b'"seed":"0"'), "seed: input should be a valid integer"),
    "a fraction for a number": (seed_edit(b'"seed":0.0'), "seed"),
    "true for a number": (seed_edit(b'"seed":true'), "seed"),
    "half a character": (seed_edit(b'"seed":"\\ud800"'), "is not strict JSON"),
    "half a character as a key": (seed_edit(b'"\\udfff":0'), "is not strict JSON"),
    "other bytes than UTF-8": (seed_edit(b'"seed":"\xff"'), "is not strict JSON"),
    "a byte order mark": (lambda data: b"\xef\xbb\xbf" + data, "is not strict JSON"),
    "a comment": (lambda data: data + b"// x", "is not strict JSON"),
    "a second document": (lambda data: data + data, "is not strict JSON"),
    "nothing": (lambda data: b"", "is not strict JSON"),
    "a list": (lambda data: b"[]", "does not describe a kdpipe cache"),
    "a space": (lambda data: data + b" ", "canonical"),
    "lists in lists": (seed_edit(b'"seed":' + b"[" * 100_000 + b"]" * 100_000), "is not strict JSON"),
    "objects in objects": (
        seed_edit(b'"seed":' + b'{"a":' * 100_000 + b"0" + b"}" * 100_000),
        "is not strict JSON",
    ),
    "lists forty deep": (seed_edit(b'"seed":' + b"[" * 40 + b"]" * 40), "nested deeper than 32"),
    "an open list": (lambda data: b"[" * 1_000_000, "is not strict JSON"),
    "a long text": (text_edit(b'"name":"synthetic"', b'"name":"' + b"x" * 3000 + b'"'), "teacher.name"),
    "a long key": (seed_edit(b'"seed":0,"' + b"k" * 3_000_000 + b'":0'), "unknown key 'kkkk"),
    "a key that clears the screen": (seed_edit(b'"seed":0,"\\u001b[2J":0'), "unknown key '\\x1b[2J'"),
    "seventeen megabytes": (seed_edit(b'"seed":"' + b"x" * MAX_BYTES + b'"'), "at most 16,777,216"),
    "thousands of keys": (
        seed_edit(b",".join(b'"k%d":0' % i for i in range(5000))),
        "an object has 5,0",
    ),
    "a million empty lists": (seed_edit(b'"seed":[' + b"[]," * 1_000_000 + b"0]"), "seed"),
}


def slow_where_large(names: Iterable[str]) -> list[Any]:
    """The names of cases; those with a million of something take seconds."""
    return [pytest.param(name, marks=pytest.mark.slow) if "million" in name else name for name in names]


@pytest.mark.many
@pytest.mark.parametrize("name", slow_where_large(TEXTS))
def test_a_manifest_that_is_no_strict_json_is_refused(cache: Path, name: str) -> None:
    edit, fragment = TEXTS[name]
    file = cache / layout.MANIFEST
    file.write_bytes(edit(file.read_bytes()))
    reseal(cache)
    assert_refused(cache, fragment)


def set_all(record: Any, **values: Any) -> None:
    """Set values at dotted places, written with two underscores."""
    for place, value in values.items():
        *steps, last = place.split("__")
        inner = record
        for step in steps:
            inner = inner[int(step)] if step.isdigit() else inner[step]
        inner[last] = value


MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "long sequences": ({"plan__sequence_length": 1 << 40}, "plan.sequence_length"),
    "large row chunks": ({"arrays__row__chunk_rows": 1 << 17}, "arrays.row.chunk_rows"),
    "large entry chunks": ({"arrays__id__chunk_entries": 1 << 40}, "arrays.id.chunk_entries"),
    "empty chunks": ({"arrays__id__chunk_entries": 0}, "arrays.id.chunk_entries"),
    "large vector chunks": ({"arrays__hidden__chunk_rows": 1 << 16, "arrays__hidden__row_bytes": 1 << 16}, "a chunk"),
    "wide vectors": ({"hidden__rows__0__width": 1 << 20}, "hidden.rows.0.width"),
    "other vectors": ({"hidden__rows__0__width": 9}, "arrays.hidden.row_bytes"),
    "a large vocabulary": ({"tokenizer__vocabulary_size": 1 << 25}, "tokenizer.vocabulary_size"),
    "another vocabulary": ({"tokenizer__vocabulary_size": 299}, "tables lacks ids_by_rank"),
    "a table without end": ({"tables__0__shape": [1 << 32, 1 << 32, 1 << 32]}, "tables lacks ids_by_rank"),
    "a table elsewhere": ({"tables__0__name": "../../x"}, "tables.0.name"),
    "no arrays": ({"arrays__id": None}, "arrays.id is missing"),
    "an array too many": ({"arrays__times": {"chunk_entries": 64, "level": 8}}, "arrays.times is there"),
    "a column too few": ({"arrays__row__columns": []}, "arrays.row.columns"),
    "a tiny step": ({"arrays__logprob__quantizer__step": 1e-300}, "arrays.logprob.quantizer"),
    "a codec of its own": ({"arrays__id__codec": "blosc"}, "arrays.id.codec"),
    "another kind": ({"targets__keep": {"kind": "pickle"}}, "targets.keep"),
    "temperature zero": ({"targets__temperatures": [0.0, 4.0]}, "targets.temperatures"),
    "many entries": ({"targets__keep__max_entries": 1 << 30}, "targets.keep"),
    "no splits": ({"plan__splits": []}, "plan.splits"),
    "falling bounds": ({"plan__splits__0__bounds": [0, 8, 4]}, "plan.splits.0: value error, bounds"),
    "bounds beyond all": ({"plan__splits__0__bounds": [0, 4, 1 << 80]}, "plan.splits.0.bounds"),
    "a million parts": ({"plan__splits__0__bounds": list(range(1_000_000))}, "expected are 1,000,000 in 9"),
    "a million wrong bounds": ({"plan__splits__0__bounds": ["x"] * 1_000_000}, "values are wrong"),
    "minor version below zero": ({"format__minor": -1}, "format.minor"),
    "no version": ({"format__major": "1"}, "has no format version"),
    "another format": ({"format__name": "zarr"}, "does not describe a kdpipe cache"),
}


@pytest.mark.many
@pytest.mark.parametrize("name", slow_where_large(MANIFESTS))
def test_a_manifest_that_asks_for_what_the_format_does_not_allow_is_refused(cache: Path, name: str) -> None:
    changes, fragment = MANIFESTS[name]
    edit_manifest(cache, lambda m: set_all(m, **changes))
    assert_refused(cache, fragment)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"format__major": 2}, "has format 2.1"),
        ({"format__major": 0}, "has format 0.1"),
        ({"format__must_understand": ["quantum"]}, "needs quantum"),
        ({"format__must_understand": "quantum"}, "needs quantum"),
    ],
)
def test_a_format_of_the_future_is_refused_as_not_fitting(cache: Path, changes: dict[str, Any], fragment: str) -> None:
    edit_manifest(cache, lambda m: set_all(m, **changes))
    assert_refused(cache, fragment, code=4)


def test_unknown_keys_of_a_newer_minor_version_are_passed_over(cache: Path) -> None:
    tokens = judged(cache)
    edit_manifest(
        cache, lambda m: set_all(m, format__minor=7, color="red", arrays__id__shade={"a": [1]}, plan__splits__0__x=1)
    )
    edit_json(cache / RECORD, lambda r: r.update(mood="good"))
    reseal(cache)
    verdict = judged(cache)
    assert verdict.code == verdict.verify_code == 0, verdict
    assert verdict.message != tokens.message


def test_unknown_keys_of_this_minor_version_are_refused(cache: Path) -> None:
    edit_manifest(cache, lambda m: set_all(m, color="red"))
    assert_refused(cache, "unknown key 'color'")


RECORDS: dict[str, tuple[dict[str, Any], str]] = {
    "another part": ({"part": 1}, "row 0 is not of part 0 of train"),
    "another split": ({"split": "validation"}, "row 0 is not of part 0 of train"),
    "other documents": ({"first_document": 4}, "the plan has"),
    "more rows than a part has": ({"n_rows": 1 << 40}, "row 0 is not of part 0 of train"),
    "rows without end": ({"n_rows": 1 << 24}, "zarr.json"),
    "one row more than a part may have": ({"n_rows": (1 << 24) + 1}, "row 0 is not of part 0 of train"),
    "more positions than rows": ({"n_positions": 1 << 20}, "n_positions is above n_rows"),
    "negative entries": ({"n_draws": -1}, "is not the one that index.parquet names"),
    "entries without end": ({"n_exact": 1 << 48}, "more entries than rows can hold"),
    "no sequences": ({"n_sequences": 0}, "rows, part.json has 0"),
    "many frames": ({"n_text_frames": 1000}, "rows, part.json has 1,000"),
    "no frames": ({"n_text_frames": 0}, "rows, part.json has 0"),
    "other columns": ({"column_bytes": {}}, "column_bytes has other columns"),
    "no digests of shards": ({"indexes": {}}, "indexes names other arrays"),
    "a file too few": ({"files": {}}, "files lists too much or too little"),
    "NaN in numbers": ({"statistics__entropy_nats": "NaN"}, "statistics.entropy_nats"),
    "other tables": ({"tables": {}}, "tables"),
    "other positions than it has entries for": ({"n_positions": 1}, "statistics."),
    "an entropy of a million nats": ({"statistics__entropy_nats": 1e6}, "statistics.entropy_nats is 1e+06, 154 posit"),
    "an entropy below zero": ({"statistics__entropy_nats": -2.0}, "statistics.entropy_nats is -2"),
    "labels more probable than all": ({"statistics__label_nats": -1e6}, "statistics.label_nats is -1e+06"),
    "tails of more than all": ({"statistics__tail_mass": 155.0}, "statistics.tail_mass is 155"),
    "more labels than positions": ({"statistics__label_is_top1": 155}, "statistics.label_is_top1 is 155"),
    "entries of one row": ({"statistics__entries": [[1, 1]]}, "statistics.entries counts 1 positions"),
    "entries twice": ({"statistics__entries": [[1, 77], [1, 77]]}, "statistics.entries does not ascend"),
    "entries beyond all": ({"statistics__entries": [[4096, 1 << 48]]}, "statistics.entries counts"),
    "a column larger than its file": ({"column_bytes__token": 1 << 48}, "column_bytes adds up to more than"),
}


@pytest.mark.many
@pytest.mark.parametrize("name", RECORDS)
def test_a_part_record_with_false_values_is_refused(cache: Path, name: str) -> None:
    changes, fragment = RECORDS[name]
    edit_json(cache / RECORD, lambda r: set_all(r, **changes))
    reseal(cache)
    assert_refused(cache, fragment)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"statistics__entropy_nats": 1.0}, "statistics.entropy_nats in part.json is 1.0"),
        ({"statistics__label_nats": 1.0}, "statistics.label_nats"),
        ({"statistics__tail_mass": None}, "statistics.tail_mass"),
        ({"statistics__entries": []}, "statistics.entries"),
        ({"statistics__label_is_top1": None}, "statistics.label_is_top1"),
    ],
)
def test_counts_and_statistics_that_lie_are_named(cache: Path, changes: dict[str, Any], fragment: str) -> None:
    edit_json(cache / RECORD, lambda r: set_all(r, **changes))
    reseal(cache)
    assert_named(cache, fragment)


def test_column_bytes_that_lie_are_named(cache: Path) -> None:
    edit_json(cache / RECORD, lambda r: r["column_bytes"].update(token=1))
    reseal(cache)
    assert_named(cache, "part.json has other sizes")


@pytest.mark.parametrize("size", [1 << 20, 1 << 22])
def test_a_part_record_of_a_megabyte_is_refused(cache: Path, size: int) -> None:
    edit_json(cache / RECORD, lambda r: r.update(mood="x" * size))
    reseal(cache)
    assert_refused(cache, "at most 1,048,576 are allowed")


def test_a_record_nested_without_end_is_refused(cache: Path) -> None:
    (cache / RECORD).write_bytes(b"[" * 1_000_000)
    verdict = judged(cache)
    assert verdict.code == verdict.verify_code == 3


def test_tables_that_name_an_id_twice_are_refused(cache: Path) -> None:
    file = cache / layout.table_file("ids_by_rank")
    data = file.read_bytes()
    file.write_bytes(data[:4] + data[:4] + data[8:])
    reseal(cache)
    assert_refused(cache, "does not name every id of the vocabulary once")


def test_an_output_head_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = fresh_cache(tmp_path / "state", "state")
    file = path / layout.table_file("output_head")
    file.write_bytes(b"\x00\x00\xc0\x7f" + file.read_bytes()[4:])
    reseal(path)
    verdict = judged(path)
    assert verdict.code == verdict.verify_code == 3
    assert "not finite" in verdict.message


@pytest.mark.parametrize("left", [["tokenizer_config.json"], ["chat_template.jinja", "tokenizer.model"], ["vocab.txt"]])
def test_tokenizer_files_without_tokenizer_json_are_refused_at_first_sight(cache: Path, left: list[str]) -> None:
    file = {"bytes": 2, "sha256": sha256_hex(b"{}")}
    edit_manifest(cache, lambda m: m["tokenizer"].update(files=dict.fromkeys(left, file)))
    shutil.rmtree(cache / layout.TOKENIZER)
    (cache / layout.TOKENIZER).mkdir()
    for name in left:
        (cache / layout.TOKENIZER / name).write_bytes(b"{}")
    assert_refused(cache, "tokenizer: value error, files lacks tokenizer.json")
    assert [problem.file for problem in verify_cache(cache, "fast").problems] == [layout.MANIFEST]
    with pytest.raises(CacheDamaged, match=r"files lacks tokenizer\.json"):
        inspect_cache(cache)


def test_a_cache_without_tokenizer_files_is_good(cache: Path) -> None:
    edit_manifest(cache, lambda m: m["tokenizer"].update(files={}))
    shutil.rmtree(cache / layout.TOKENIZER)
    assert judged(cache).verify_code == 0
