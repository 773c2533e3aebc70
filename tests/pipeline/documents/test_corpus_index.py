"""The index: documents counted, bad rows named, kept columns typed, splits drawn by content."""

import hashlib
import json
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from kdpipe.pipeline.documents.columns import Document, detect
from kdpipe.pipeline.documents.corpus_index import Index, Indexer
from kdpipe.pipeline.documents.row_files import Row, RowFile
from kdpipe.schemas.cache_plan import MAX_SEQUENCE_ROWS
from kdpipe.schemas.capture_settings import Columns, DataSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import SourceColumn
from kdpipe.schemas.strict_json import canonical


class FixedOrder:
    """Rows that are in memory."""

    def __init__(self, rows: list[Any], name: str = "corpus.jsonl") -> None:
        self.name, self._rows = name, rows
        self.wanted = None

    def rows(self) -> Any:
        for i, columns in enumerate(self._rows):
            if isinstance(columns, str):
                yield Row(number=i + 1, position=i, problem=columns)
            else:
                yield Row(number=i + 1, position=10 * i, columns=columns)

    def columns_at(self, positions: list[int]) -> Any:
        raise AssertionError("the index reads in order")


def texts(*names: str) -> list[Any]:
    return [{"text": name} for name in names]


def index(
    *files: RowFile, keep: tuple[str, ...] = (), made_with: dict[str, Any] | None = None, **settings: Any
) -> Index:
    given = DataSettings(**settings)
    mappings = detect([["text", *keep]] * len(files), Columns(keep=keep), "x")
    indexer = Indexer(mappings, given, lambda document: document.n_bytes)
    indexer.read(files, split="train" if given.val_path else None)
    return indexer.finish(made_with or {})


def test_documents_are_read_again_by_file_and_position() -> None:
    found = index(FixedOrder(texts("a", "bcd")), FixedOrder(["bad", *texts("e")]), val_fraction=0.0)
    assert found.files.tolist() == [0, 0, 1]
    assert found.positions.tolist() == [0, 10, 10]
    assert found.numbers.tolist() == [1, 2, 2]
    assert found.sizes.tolist() == [1, 3, 1]
    assert found.documents("train").tolist() == [0, 1, 2]
    assert found.documents("validation").tolist() == []


def test_bad_rows_are_counted_and_the_first_named() -> None:
    rows = [*texts("a"), "it is not valid UTF-8", {"text": 3}, {"text": ""}, {"text": "x" * 11}, {"text": "\ud800"}, {}]
    found = index(FixedOrder(rows), max_document_bytes=10)
    assert found.n_bad_rows == 6
    assert found.bad_rows == (
        "corpus.jsonl:2: it is not valid UTF-8",
        "corpus.jsonl:3: text is a number, expected text",
        "corpus.jsonl:4: text is empty",
        "corpus.jsonl:5: 11 bytes, at most 10 are allowed; only text files are cut",
        "corpus.jsonl:6: a lone surrogate, which is not valid UTF-8",
        "corpus.jsonl:7: text is missing",
    )


def test_a_lone_surrogate_in_a_kept_column_is_a_bad_row() -> None:
    found = index(FixedOrder([{"text": "a", "k": "\udfff"}]), keep=("k",))
    assert found.bad_rows == ("corpus.jsonl:1: a lone surrogate, which is not valid UTF-8",)


def test_a_value_that_json_cannot_represent_is_a_bad_row() -> None:
    mappings = detect([["messages"]], Columns(), "x")
    indexer = Indexer(mappings, DataSettings(), lambda document: document.n_bytes)
    turns = [{"role": "assistant", "content": "a", "more": more} for more in (b"", float("inf"))]
    indexer.read([FixedOrder([{"messages": [turn]} for turn in turns])])
    found = indexer.finish({})
    assert (
        found.bad_rows[0]
        == "corpus.jsonl:1: a value that JSON cannot represent: Object of type bytes is not JSON serializable"
    )
    assert found.bad_rows[1].startswith("corpus.jsonl:2: a value that JSON cannot represent: Out of range float")


def test_more_messages_than_a_part_can_hold_are_a_bad_row() -> None:
    mappings = detect([["text"]], Columns(), "x")
    indexer = Indexer(mappings, DataSettings(), lambda _: MAX_SEQUENCE_ROWS)
    indexer.read([FixedOrder(texts("a"))])
    assert "too many for one part" in indexer.finish({}).bad_rows[0]


def test_one_bad_row_more_than_allowed_is_an_error_that_names_the_first() -> None:
    rows = ["broken one", "broken two", "broken three", "broken four", *texts("a")]
    assert index(FixedOrder(rows), max_bad_rows=4).n_bad_rows == 4
    named = (
        r"more than 3 invalid rows\. The first: corpus\.jsonl:1: broken one; "
        r"corpus\.jsonl:2: broken two; corpus\.jsonl:3: broken three"
    )
    with pytest.raises(ConfigError, match=named) as caught:
        index(FixedOrder(rows), max_bad_rows=3)
    assert "--max-bad-rows N" in str(caught.value.hint)
    with pytest.raises(ConfigError, match=r"^invalid row"):
        index(FixedOrder(rows), max_bad_rows=0)


def test_the_limit_counts_good_documents() -> None:
    found = index(FixedOrder(["bad", *texts("a", "b")]), FixedOrder(texts("c", "d")), limit=3, val_fraction=0.0)
    assert found.files.tolist() == [0, 0, 1]


def kept(*values: Any) -> tuple[SourceColumn, ...]:
    return index(FixedOrder([{"text": "a", "k": value} for value in values]), keep=("k",)).columns


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (("a", None), "string"),
        ((1, -5), "int64"),
        ((None, 1.5, 2), "float64"),
        ((2, 1.5), "float64"),
        ((True, False), "bool"),
        ((None,), "string"),
    ],
)
def test_the_type_of_a_kept_column_is_detected(values: tuple[Any, ...], kind: str) -> None:
    assert [column.type for column in kept(*values)] == [kind]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (("a", 1), "corpus.jsonl:2: the kept column 'k' .*int64.*string"),
        ((1, True), "corpus.jsonl:2: the kept column 'k' .*bool.*int64"),
        ((["en"],), "corpus.jsonl:1: the kept column 'k' .*list.*string, int64, float64, bool"),
        ((1 << 63,), "corpus.jsonl:1: the kept column 'k' .*int.*string"),
    ],
)
def test_a_kept_column_of_mixed_or_nested_types_is_refused(values: tuple[Any, ...], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        kept(*values)
    assert "data.columns.keep" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["my column", "é", "1st", "x" * 65])
def test_a_kept_column_with_an_unsupported_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be kept") as caught:
        index(FixedOrder(texts("a")), keep=(name,))
    assert "rename it" in str(caught.value.hint)


def chance(text: str) -> float:
    return int.from_bytes(hashlib.sha256(canonical(text)).digest()[:8], "big") / 2**64


@hypothesis.given(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=30), st.floats(0, 0.99))
def test_documents_are_split_by_their_content_alone(names: list[str], fraction: float) -> None:
    found = index(FixedOrder(texts(*names)), val_fraction=fraction)
    in_validation = {name for name, chosen in zip(names, found.in_validation, strict=True) if chosen}
    wanted = {name for name in names if chance(name) < fraction}
    if not wanted and fraction > 0 and len(set(names)) > 1:
        wanted = {min(names, key=chance)}
    assert in_validation == wanted
    assert all(chosen == (name in wanted) for name, chosen in zip(names, found.in_validation, strict=True))


def test_equal_documents_are_in_one_split_and_training_is_not_empty() -> None:
    assert not index(FixedOrder(texts("a", "a")), val_fraction=1e-9).in_validation.any()
    assert index(FixedOrder(texts("a", "a", "b", "b")), val_fraction=1e-9).in_validation.sum() == 2


def test_separate_validation_data_are_the_validation_split() -> None:
    indexer = Indexer(detect([["text"]] * 2, Columns(), "x"), DataSettings(limit=1), lambda d: d.n_bytes)
    assert indexer.read([FixedOrder(texts("a", "b"))], split="train") == 1
    assert indexer.read([FixedOrder(texts("c", "d"))], 1, "validation") == 2
    assert indexer.finish({}).in_validation.tolist() == [False, True, True]


def test_the_fingerprint_depends_on_documents_order_columns_splits_and_settings() -> None:
    same = index(FixedOrder(texts("a", "b", "c"))).fingerprint
    assert index(FixedOrder(texts("a")), FixedOrder(["bad", *texts("b", "c")], "other")).fingerprint == same
    others = [
        index(FixedOrder(texts("a", "c", "b"))),
        index(FixedOrder(texts("a", "b"))),
        index(FixedOrder(texts("a", "b", "c")), val_fraction=0.0),
        index(FixedOrder(texts("a", "b", "c")), made_with={"train_on": "assistant"}),
        index(FixedOrder([{"text": name, "k": 1} for name in "abc"]), keep=("k",)),
    ]
    assert len({same, *(other.fingerprint for other in others)}) == 6


def test_an_index_takes_little_memory_per_document() -> None:
    found = index(FixedOrder(texts(*map(str, range(1000)))))
    arrays = (found.files, found.positions, found.numbers, found.sizes, found.in_validation)
    assert sum(each.nbytes for each in arrays) == 21 * 1000


def test_lines_of_any_order_of_keys_are_the_same_document(tmp_path: Path) -> None:
    one = {"role": "user", "content": "a"}
    assert json.dumps(one) != json.dumps(dict(reversed(one.items())))
    documents = [Document(messages=(m,), columns={}) for m in (one, dict(reversed(one.items())))]
    assert documents[0].digest() == documents[1].digest()
