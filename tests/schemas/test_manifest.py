"""What a cache may be made of: every rule of target specs, plans, arrays, tables and versions is enforced, with a
message.
"""

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from kdpipe.schemas.arrays import (
    Arrays,
    Column,
    CountQuantizer,
    LinearQuantizer,
    RowArray,
    VectorArray,
    default_arrays,
    log_z_quantizer,
)
from kdpipe.schemas.cache_plan import MAX_SEQUENCE_ROWS, CachePlan, SplitPlan
from kdpipe.schemas.errors import CacheDamaged, ConfigError, FileDamaged, Incompatible
from kdpipe.schemas.manifest import Data, Manifest, SourceColumn, Table, TeacherRecord, Tokenizer, expected_tables
from kdpipe.schemas.part import PartRecord, ScaledRows, Statistics
from kdpipe.schemas.records import read_record
from kdpipe.schemas.strict_json import canonical
from kdpipe.schemas.target_kinds import Imported, NoTargets, Sampled, State, Threshold, TopK, TopP
from kdpipe.schemas.targets import HiddenSpec, KeptSpec, TargetSpec, Vector
from kdpipe.schemas.version import check_version
from support.arbitrary import Wish

THRESHOLD = Threshold(tau=0.1)
TRAIN = SplitPlan(name="train", bounds=(0, 3, 7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperatures": (1.0, 2.0)}, "must differ from each other and from 1, whose log_z is 0"),
        ({"temperatures": (2.0, 2.0)}, "must differ from each other and from 1"),
        ({"target_temperature": 3.0}, "the target temperature must be 1 or one of the temperatures"),
        ({"keep": TopK(k=3), "draw_values": True}, "targets of kind topk have no draws to store values of"),
        ({"keep": NoTargets()}, "targets of kind none hold no entropy, no temperatures and no boundary scalar"),
        ({"keep": NoTargets(), "temperatures": (), "boundary": True}, "no temperatures and no boundary scalar"),
        (
            {"keep": Imported(source="x", max_entries=4), "temperatures": (2.0,), "target_temperature": 2.0},
            "targets whose tail is unknown have no weights at another temperature than 1",
        ),
        ({"temperatures": (0.0,)}, "greater than or equal to 0.001"),
        ({"temperatures": (1001.0,)}, "less than or equal to 1000"),
        ({"target_temperature": math.nan}, "finite number"),
    ],
)
def test_a_target_spec_that_contradicts_itself_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TargetSpec(**{"keep": THRESHOLD, **settings})


def test_a_target_temperature_that_is_listed_is_taken() -> None:
    spec = TargetSpec(keep=THRESHOLD, target_temperature=4.0, temperatures=(2.0, 4.0), draw_values=True)
    assert (spec.temperatures, spec.has_draws, spec.tail_known) == ((2.0, 4.0), True, True)
    assert TargetSpec(keep=State(width=3), target_temperature=2.0, temperatures=(2.0,)).max_entries == 0


@pytest.mark.parametrize(
    ("keep", "most", "entries", "draws", "tail"),
    [
        (Threshold(tau=0.1, max_entries=9), 9, True, True, True),
        (Sampled(draws=9), 10, True, True, True),
        (TopK(k=9), 9, True, False, True),
        (TopP(p=0.5, max_entries=9), 9, True, False, True),
        (Imported(source="x", max_entries=9), 9, True, False, False),
        (Imported(source="x", max_entries=9, tail_known=True), 9, True, False, True),
        (State(width=9), 0, False, False, False),
        (NoTargets(), 0, False, False, False),
    ],
)
def test_each_kind_knows_what_its_rows_may_hold(
    keep: KeptSpec, most: int, entries: bool, draws: bool, tail: bool
) -> None:
    spec = TargetSpec(keep=keep, temperatures=(), entropy=keep.kind != "none")
    assert (spec.max_entries, spec.has_entries, spec.has_draws, spec.tail_known) == (most, entries, draws, tail)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Threshold, {"tau": 0.0}),
        (Threshold, {"tau": 1.5}),
        (Threshold, {"tau": 0.1, "max_entries": 0}),
        (Threshold, {"tau": 0.1, "max_entries": 4097}),
        (Sampled, {"draws": 0}),
        (Sampled, {"draws": 4096}),
        (TopK, {"k": 0}),
        (TopK, {"k": 4097}),
        (TopP, {"p": 0.0}),
        (TopP, {"p": 1.01}),
        (State, {"width": 0}),
        (State, {"width": (1 << 16) + 1}),
        (State, {"width": 3, "soft_cap": 0.0}),
        (State, {"width": 3, "logit_scale": -1.0}),
        (Imported, {"source": "", "max_entries": 3}),
        (Vector, {"layer": -1, "width": 3, "group": 3}),
        (Vector, {"layer": 1, "width": 3, "group": 0}),
        (CachePlan, {"splits": (TRAIN,), "sequence_length": 0}),
        (CachePlan, {"splits": (TRAIN,), "sequence_length": MAX_SEQUENCE_ROWS + 1}),
        (CachePlan, {"splits": (), "sequence_length": 9}),
        (SplitPlan, {"name": "train", "bounds": (0,)}),
        (SplitPlan, {"name": "test", "bounds": (0, 1)}),
        (SplitPlan, {"name": "train", "bounds": (0, (1 << 48) + 1)}),
        (LinearQuantizer, {"step": 2.0}),
        (LinearQuantizer, {"step": 2.0**-21}),
        (LinearQuantizer, {"step": 0.1, "zero": 65534}),
        (LinearQuantizer, {"step": 0.1, "sign": 2}),
        (Column, {"name": "Token", "quantizer": CountQuantizer()}),
        (RowArray, {"columns": (Column(name="a", quantizer=CountQuantizer()),)}),
        (VectorArray, {"row_bytes": 0}),
        (VectorArray, {"row_bytes": 1 << 20, "chunk_rows": 65}),
        (Tokenizer, {"fingerprint": "0" * 63, "vocabulary_size": 5}),
        (Tokenizer, {"fingerprint": "0" * 64, "vocabulary_size": 0}),
        (Tokenizer, {"fingerprint": "0" * 64, "vocabulary_size": (1 << 24) + 1}),
        (SourceColumn, {"name": "a b", "type": "string"}),
        (SourceColumn, {"name": "a", "type": "list"}),
        (Table, {"name": "x/y", "dtype": "uint32", "shape": (3,)}),
        (Table, {"name": "x", "dtype": "uint32", "shape": (0,)}),
        (Table, {"name": "x", "dtype": "uint32", "shape": ()}),
        (TeacherRecord, {"name": "x" * 2001}),
        (Statistics, {"entries": ((4097, 1),)}),
    ],
)
def test_every_bound_binds(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind(**settings)


@pytest.mark.parametrize("bounds", [(1, 2), (0, 0), (0, 3, 3), (0, 5, 4)])
def test_a_plan_whose_bounds_do_not_increase_is_refused(bounds: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match=r"bounds.*start.*0.*increase"):
        SplitPlan(name="train", bounds=bounds)


def test_parts_are_numbered_through_the_splits() -> None:
    plan = CachePlan(splits=(TRAIN, SplitPlan(name="validation", bounds=(0, 2))), sequence_length=8)
    parts = [plan.part(number) for number in range(plan.n_parts)]
    found = [(p.number, p.split, p.first_document, p.n_documents) for p in parts]
    assert found == [(0, "train", 0, 3), (1, "train", 3, 4), (2, "validation", 0, 2)]
    for number in (3, -1):
        with pytest.raises(ConfigError, match=f"the plan has 3 parts, there is no part {number}"):
            plan.part(number)
    with pytest.raises(ValidationError, match="duplicate split"):
        CachePlan(splits=(TRAIN, TRAIN), sequence_length=8)


def test_nothing_is_named_twice() -> None:
    vector, column = Vector(layer=1, width=2, group=2), SourceColumn(name="a", type="bool")
    for vectors in ({"pooled": (vector, vector)}, {"rows": (vector, vector)}):
        with pytest.raises(ValidationError, match="duplicate layer"):
            HiddenSpec(**vectors)
    with pytest.raises(ValidationError, match="duplicate column"):
        Data(fingerprint="0" * 64, source="x", columns=(column, column))
    with pytest.raises(ValidationError, match="duplicate column name"):
        Arrays(row=RowArray(columns=(Column(name="a", quantizer=CountQuantizer()),) * 3))
    manifest = Wish(keep=THRESHOLD).manifest
    with pytest.raises(ValidationError, match="duplicate table"):
        remade(manifest, tables=manifest.tables * 2)


def remade(manifest: Manifest, **changes: Any) -> Manifest:
    """A manifest with some of its records exchanged, checked again."""
    fields = {name: getattr(manifest, name) for name in Manifest.model_fields}
    return Manifest(**{**fields, **changes})


def test_a_temperature_so_low_that_log_z_does_not_fit_is_refused() -> None:
    assert log_z_quantizer(0.2, 152_000).sign == -1
    with pytest.raises(ValueError, match=r"log_z.*temperature 0\.1.*not fit.*codes"):
        log_z_quantizer(0.1, 152_000)
    with pytest.raises(ValueError, match=r"log_z.*temperature 0\.1.*not fit.*codes"):
        default_arrays(TargetSpec(keep=THRESHOLD, temperatures=(0.1,)), HiddenSpec(), 152_000)
    fits = TargetSpec(keep=THRESHOLD, temperatures=(0.1,))
    assert default_arrays(fits, HiddenSpec(), 500).row.columns[-1].name == "log_z@0.1"


def test_arrays_must_be_those_that_the_targets_need() -> None:
    manifest = Wish(keep=THRESHOLD, hidden=True).manifest
    arrays = manifest.arrays
    assert arrays.hidden is not None
    columns = arrays.row.columns
    wrong_ones: list[tuple[dict[str, Any], str]] = [
        ({"times": default_arrays(TargetSpec(keep=Sampled(draws=3)), HiddenSpec(), 9).times}, "arrays.times is there"),
        ({"logprob": None}, "arrays.logprob is missing, against the targets"),
        ({"hidden": VectorArray(row_bytes=3)}, "arrays.hidden.row_bytes is 3, the vectors take 24"),
        ({"row": arrays.row.model_copy(update={"columns": columns[1:]})}, "arrays.row.columns are loss_mask"),
        ({"row": arrays.row.model_copy(update={"columns": columns[::-1]})}, r"these targets need token \(rank\)"),
    ]
    for wrong, message in wrong_ones:
        with pytest.raises(ValidationError, match=message):
            remade(manifest, arrays=arrays.model_copy(update=wrong))
    assert arrays.hidden.row_bytes == sum(vector.n_bytes for vector in manifest.hidden.rows) == 24


def test_tables_and_teacher_must_be_those_that_the_targets_need() -> None:
    manifest = Wish(keep=State(width=6, head_bias=True), vocabulary_size=9).manifest
    assert [table.name for table in manifest.tables] == ["ids_by_rank", "output_head", "output_bias"]
    with pytest.raises(ValidationError, match=r"tables lacks output_bias of type float32 and shape \[9\]"):
        remade(manifest, tables=manifest.tables[:2])
    huge = Table(name="huge", dtype="float32", shape=(1 << 32, 1 << 4))
    with pytest.raises(ValidationError, match=r"tables.*68,719,476,736 bytes"):
        remade(manifest, tables=(*manifest.tables, huge))
    with pytest.raises(ValidationError, match=r"targets.*kind state.*teacher"):
        remade(manifest, teacher=None)
    tables = expected_tables(TargetSpec(keep=State(width=6, head_dtype="bfloat16")), HiddenSpec(), 9)
    assert [table.n_bytes for table in tables] == [36, 9 * 6 * 2]


PART: dict[str, Any] = {
    "manifest_sha256": "0" * 64, "part": 0, "split": "train", "first_document": 0, "n_documents": 1,
    "n_sequences": 1, "n_rows": 2, "n_positions": 2, "n_exact": 3, "n_draws": 0,
    "column_bytes": {}, "indexes": {}, "tables": {}, "files": {},
}  # fmt: skip


def test_a_part_cannot_count_more_than_it_has() -> None:
    fine = PART
    assert PartRecord(**fine).n_entries == 3
    scaled = {"n_rows": 3, "largest_excess": 0.5, "median_excess": 0.25}
    with pytest.raises(ValidationError, match=r"rows.*scaled.*positions"):
        PartRecord(**{**fine, "scaled": scaled})
    with pytest.raises(ValidationError):
        PartRecord(**{**fine, "scaled": {**scaled, "n_rows": 1, "largest_excess": 1e308}})
    with pytest.raises(ValidationError, match="n_positions is above n_rows"):
        PartRecord(**{**fine, "n_positions": 3})
    for name in ("n_exact", "n_draws"):
        with pytest.raises(ValidationError, match=r"entries.*rows"):
            PartRecord(**{**fine, name: 2 * 4096 + 1})
    for name in ("/x", "a//b", "A", "a/b/c/d/e/f", ""):
        with pytest.raises(ValidationError):
            PartRecord(**{**fine, "files": {name: {"bytes": 1, "sha256": "0" * 64}}})


def test_duplicates_are_a_key_of_a_split_only_where_they_are_counted() -> None:
    unknown = SplitPlan(name="train", bounds=(0, 4))
    assert b"duplicates" not in CachePlan(splits=(unknown,), sequence_length=8).to_json()
    assert read_record(SplitPlan, unknown.to_json(), "x") == unknown
    counted = SplitPlan(name="train", bounds=(0, 4), duplicates=3)
    assert read_record(SplitPlan, counted.to_json(), "x") == counted
    null = canonical({**json.loads(unknown.to_json()), "duplicates": None})
    with pytest.raises(FileDamaged, match=r"x.*not.*canonical form"):
        read_record(SplitPlan, null, "x")
    for wrong in (4, -1):
        with pytest.raises(ValidationError):
            SplitPlan(name="train", bounds=(0, 4), duplicates=wrong)


def test_scaled_rows_are_a_key_of_a_part_only_where_there_are_some() -> None:
    without = PartRecord(**PART)
    assert b"scaled" not in without.to_json()
    assert read_record(PartRecord, without.to_json(), "part.json") == without
    some = PartRecord(**PART, scaled=ScaledRows(n_rows=2, largest_excess=0.5, median_excess=0.25))
    assert read_record(PartRecord, some.to_json(), "part.json") == some
    null = canonical({**json.loads(without.to_json()), "scaled": None})
    with pytest.raises(FileDamaged, match=r"part\.json.*not.*canonical form"):
        read_record(PartRecord, null, "part.json")


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (None, "x does not describe a kdpipe cache"),
        ([], "x does not describe a kdpipe cache"),
        ({}, "x does not describe a kdpipe cache"),
        ({"format": {"name": "other"}}, "x does not describe a kdpipe cache"),
        ({"format": {"name": "kdpipe-cache", "major": "1", "minor": 0}}, "x has no format version"),
        ({"format": {"name": "kdpipe-cache", "major": True, "minor": 0}}, "x has no format version"),
        ({"format": {"name": "kdpipe-cache", "major": 1}}, "x has no format version"),
    ],
)
def test_what_states_no_version_is_no_cache(stated: Any, message: str) -> None:
    with pytest.raises(CacheDamaged, match=message):
        check_version(stated, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"major": 2}, "x has format 2.1, this kdpipe reads 1.x"),
        ({"major": 0, "minor": 9}, "x has format 0.9, this kdpipe reads 1.x"),
        ({"must_understand": ["a", "b"]}, "x needs a, b, unknown to this kdpipe"),
        ({"must_understand": "everything"}, "x needs everything, unknown to this kdpipe"),
        ({"must_understand": [["a"]]}, r"x needs \['a'\], unknown to this kdpipe"),
        ({"minor": 5, "must_understand": ["a"]}, "x needs a, unknown"),
    ],
)
def test_a_version_that_cannot_be_read_is_incompatible(change: dict[str, Any], message: str) -> None:
    stated = {"name": "kdpipe-cache", "major": 1, "minor": 1, **change}
    with pytest.raises(Incompatible, match=message) as refused:
        check_version({"format": stated}, "x")
    assert "install" in str(refused.value.hint)


def test_the_format_of_development_versions_is_refused() -> None:
    stated = {"name": "kdpipe-cache", "major": 1, "minor": 0, "must_understand": []}
    with pytest.raises(Incompatible, match=r"x has format 1\.0") as refused:
        check_version({"format": stated}, "x")
    assert "recreate the cache" in str(refused.value.hint)


def test_versions_that_can_be_read_say_whether_they_are_newer() -> None:
    stated = {"name": "kdpipe-cache", "major": 1, "minor": 1, "must_understand": []}
    assert check_version({"format": stated}, "x") is False
    assert check_version({"format": {**stated, "minor": 3}}, "x") is True
