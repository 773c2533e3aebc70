"""Records are read strictly, and a refusal names the key, its place and the nearest allowed one."""

from typing import Any

import pytest

from kdpipe.schemas.differences import differing_keys, differing_settings
from kdpipe.schemas.errors import FileDamaged
from kdpipe.schemas.manifest import Manifest, read_manifest
from kdpipe.schemas.records import allowed_keys, read_record
from kdpipe.schemas.strict_json import canonical, parse
from kdpipe.schemas.target_kinds import Sampled, Threshold
from support.arbitrary import Wish

MANIFEST = Wish(keep=Threshold(tau=0.1), vocabulary_size=9, hidden=True).manifest


def changed(*place: str | int, to: Any) -> bytes:
    """The manifest with one value changed, or one key added."""
    value = parse(MANIFEST.to_json(), "here")
    inner = value
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = to
    return canonical(value)


def refusal(data: bytes) -> str:
    with pytest.raises(FileDamaged) as refused:
        read_record(Manifest, data, "manifest.json")
    return refused.value.message


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("sede",), "unknown key 'sede': the nearest allowed one is 'seed'"),
        (
            ("tokenizer", "finger_print"),
            "unknown key 'tokenizer.finger_print': the nearest allowed one is 'fingerprint'",
        ),
        (("teacher", "dtyp"), "unknown key 'teacher.dtyp': the nearest allowed one is 'dtype'"),
        (("targets", "keep", "taus"), "unknown key 'targets.keep.threshold.taus': the nearest allowed one is 'tau'"),
        (("arrays", "row", "columns", 0, "nam"), "'arrays.row.columns.0.nam': the nearest allowed one is 'name'"),
        (
            ("arrays", "logprob", "quantizer", "stepp"),
            "'arrays.logprob.quantizer.stepp': the nearest allowed one is 'step'",
        ),
        (("hidden", "pooled", 1, "widht"), "unknown key 'hidden.pooled.1.widht': the nearest allowed one is 'width'"),
        (("data", "columns", 3, "typ"), "unknown key 'data.columns.3.typ': the nearest allowed one is 'type'"),
        (("targets", "keep", "zzzz"), "'targets.keep.threshold.zzzz': allowed are kind, max_entries, tau"),
        (("plan", "\u001b[31m"), r"unknown key 'plan.\x1b[31m': allowed are packed, sequence_length, splits"),
    ],
)
def test_an_unknown_key_is_refused_with_its_place_and_the_nearest_one(
    place: tuple[str | int, ...], message: str
) -> None:
    messages = refusal(changed(*place, to=1))
    assert messages.startswith("manifest.json: unknown key '")
    assert message in messages


def test_an_unknown_key_inside_a_quantizer_of_a_column_names_the_quantizer() -> None:
    names = [column.name for column in MANIFEST.arrays.row.columns]
    messages = refusal(changed("arrays", "row", "columns", names.index("log_tail"), "quantizer", "zerro", to=1))
    assert "quantizer.log_odds.zerro': the nearest allowed one is 'zero'" in messages


def test_an_unknown_key_inside_a_mapping_is_named() -> None:
    entry = {"bytes": 1, "sha256": "0" * 64, "sha265": "x"}
    messages = refusal(changed("tokenizer", "files", to={"merges.txt": entry}))
    assert (
        messages
        == "manifest.json: unknown key 'tokenizer.files.merges.txt.sha265': the nearest allowed one is 'sha256'"
    )


def test_the_first_of_many_problems_is_reported_with_their_number() -> None:
    value = parse(MANIFEST.to_json(), "here")
    value["seed"], value["sede"], value["kdpipe"] = "seven", 1, 2
    messages = refusal(canonical(value))
    assert messages.startswith("manifest.json: kdpipe: input should be a valid string (and 2 more)")
    value["data"] = {f"key{number}": 1 for number in range(3000)}
    assert "values are wrong" in refusal(canonical(value))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("seed",), "7", "seed: input should be a valid integer"),
        (("seed",), 7.0, "seed: input should be a valid integer"),
        (("seed",), True, "seed: input should be a valid integer"),
        (("seed",), -1, "seed: input should be greater than or equal to 0"),
        (("data", "text"), 1, "data.text: input should be a valid boolean"),
        (
            ("targets", "keep", "kind"),
            "treshold",
            "targets.keep: input tag 'treshold' found using 'kind'",
        ),
        (("teacher", "dtype"), "int4", "teacher.dtype: input should be 'float32'"),
        (("kdpipe",), None, "kdpipe: input should be a valid string"),
        (("plan", "splits"), {}, "plan.splits: input should be a valid array"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_place(
    place: tuple[str | int, ...], value: Any, message: str
) -> None:
    assert refusal(changed(*place, to=value)).startswith(f"manifest.json: {message}")


def test_a_missing_key_is_named() -> None:
    value = parse(MANIFEST.to_json(), "here")
    del value["arrays"]["row"]["columns"]
    assert refusal(canonical(value)) == "manifest.json: arrays.row.columns: field required"


@pytest.mark.parametrize(
    "spelling",
    [
        lambda data: data[:-1],
        lambda data: b" " + data,
        lambda data: data.replace(b'"seed":0', b'"seed": 0'),
        lambda data: data.replace(b'"tau":0.1', b'"tau":0.10'),
        lambda data: data.replace(b'"tau":0.1', b'"tau":1e-1'),
        lambda data: data.replace(b'"arbitrary"', b'"\\u0061rbitrary"', 1),
        lambda data: data.replace(b'"history":[],', b""),
        lambda data: data.replace(b'{"arrays"', b'{"seed":0,"arrays"').replace(b'"seed":0,"t', b'"t'),
        lambda data: data.replace(b'"temperatures":[2.0]', b'"temperatures":[2]'),
    ],
)
def test_only_the_canonical_spelling_is_read(spelling: Any) -> None:
    data = MANIFEST.to_json()
    assert read_record(Manifest, data, "manifest.json") == MANIFEST
    respelled = spelling(data)
    assert respelled != data
    assert refusal(respelled) == "manifest.json is not in canonical form, so its digest is not its identity"


def test_a_record_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        MANIFEST.seed = 3  # type: ignore[misc]


def test_a_newer_minor_version_may_have_keys_that_are_not_known() -> None:
    value = parse(MANIFEST.to_json(), "here")
    value["format"]["minor"] = 2
    plain = read_manifest(canonical(value), "manifest.json")
    value["extra"] = {"deep": [1, {"deeper": None}]}
    value["targets"]["keep"]["extra"] = 1
    value["arrays"]["row"]["columns"][2]["quantizer"]["extra"] = "x"
    value["hidden"]["rows"][0]["extra"] = 0.5
    value["data"]["columns"][1]["extra"] = []
    newer = read_manifest(canonical(value), "manifest.json")
    assert newer.model_dump() == plain.model_dump()
    assert newer.sha256 != plain.sha256
    value["seed"] = "seven"
    with pytest.raises(FileDamaged, match=r"manifest\.json: seed.*input.*valid integer"):
        read_manifest(canonical(value), "manifest.json")


def test_allowed_keys_are_found_at_any_place() -> None:
    assert allowed_keys(Manifest, ("targets", "keep", "sampled")) == {"kind", "draws"}
    assert allowed_keys(Manifest, ("plan", "splits", 0)) == {"name", "bounds", "duplicates"}
    assert allowed_keys(Manifest, ("tokenizer", "files", "x.json")) == {"bytes", "sha256"}
    assert allowed_keys(Manifest, ("nowhere", "at", "all")) == set()


def test_two_records_differ_by_their_leaves() -> None:
    other = Wish(keep=Sampled(draws=3), vocabulary_size=9, hidden=True, text=True, seed=5).manifest
    lines = differing_keys(MANIFEST.model_dump(mode="json"), other.model_dump(mode="json"))
    assert "seed: existing 0, requested 5" in lines
    assert "data.text: existing False, requested True" in lines
    assert "targets.keep.kind: existing 'threshold', requested 'sampled'" in lines
    assert "targets.keep.draws: existing None, requested 3" in lines
    assert any(line.startswith(("arrays.row.columns[3]", "arrays.times")) for line in lines)
    assert not differing_keys(MANIFEST.model_dump(mode="json"), MANIFEST.model_dump(mode="json"))
    assert differing_keys([1, 2], [1, 2, 3], "a") == ["a: existing [1, 2], requested [1, 2, 3]"]
    assert differing_keys({"a": "x" * 99}, {"a": 1}) == [f"a: existing '{'x' * 36}..., requested 1"]


def test_two_manifests_differ_by_their_settings() -> None:
    other = Wish(keep=Sampled(draws=3), vocabulary_size=9, hidden=True, text=True, seed=5).manifest
    lines = differing_settings(MANIFEST.model_dump(mode="json"), other.model_dump(mode="json"))
    assert "--seed: existing 0, requested 5" in lines
    assert "--for-other-tokenizers: existing no, requested yes" in lines
    assert "--targets: existing 'threshold', requested 'sampled'" in lines
    # Consequences of these are not reported beside them.
    assert not [line for line in lines if line.startswith(("arrays", "tables", "targets.", "--draws", "--tau"))]
    assert not differing_settings(MANIFEST.model_dump(mode="json"), MANIFEST.model_dump(mode="json"))


def test_a_difference_without_a_setting_is_reported_by_its_key() -> None:
    there, requested = {"arrays": {"id": {"chunk": 1}}, "history": []}, {"arrays": {"id": {"chunk": 2}}, "history": []}
    assert differing_settings(there, requested) == ["arrays.id.chunk: existing 1, requested 2"]
    assert differing_settings({"kdpipe": "0.1"}, {"kdpipe": "0.2"}) == ["kdpipe: existing '0.1', requested '0.2'"]


def test_a_derived_cache_is_described_by_its_operation_and_selection() -> None:
    some, more = ({"action": "copy", "caches": ["0" * 64], "note": f"parts 0:{end}"} for end in (1, 2))
    there, requested = ({"data": {"fingerprint": end}, "history": [made]} for end, made in enumerate((some, more)))
    assert differing_settings(there, requested) == ["selection: existing 'parts 0:1', requested 'parts 0:2'"]
    reported = ["source caches: existing none, requested copy (parts 0:2)"]
    assert differing_settings(there | {"history": []}, requested) == reported
