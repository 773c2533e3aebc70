"""DistillKit's budget setting on a trained teacher: rows that add up to more than 1 are scaled, counted and shown."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdpipe.cache.inspect import inspect_cache
from kdpipe.cache.opening import open_cache
from kdpipe.cache.reshape.merge import merge
from kdpipe.cache.verify.deep_child import Parts, check_part
from kdpipe.cli.main import run
from kdpipe.pipeline import import_cache as importing
from kdpipe.schemas.errors import ConfigError
from support.distillkit_encoder import BUDGET, N_BYTES, budget_rows
from support.distillkit_twin import packed_values
from support.interop_sources import imported, word_tokenizer

STEP = 1 / 16  # of log p in a cache
TYPES = {"input_ids": pa.list_(pa.uint64())} | dict.fromkeys(
    ("compressed_logprobs", "bytepacked_indices"), pa.list_(pa.list_(pa.uint8()))
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(word_tokenizer(tmp_path_factory.mktemp("tokenizers") / "words", N_BYTES))


def write_source(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A folder as DistillKit leaves one."""
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(list(rows), pa.schema(TYPES)), folder / "data_0.parquet")
    (folder / "compression_config.yaml").write_text(BUDGET.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "captured", [row.columns for row in budget_rows()])


def words(source: Path, tokenizer: str, out: Path, *more: str) -> list[str]:
    place = ["--from", "distillkit", str(source), "--tokenizer", tokenizer, "--out", str(out)]
    return ["cache", "import", *place, "--no-pack", *more]


def excess(numbers: Sequence[int]) -> npt.NDArray[np.float64]:
    """By how much rows of some documents are above 1; the last row of each is about nothing."""
    mass = np.concatenate([np.exp(budget_rows()[i].values[:-1]).sum(axis=1) for i in numbers])
    found: npt.NDArray[np.float64] = mass[mass > 1.001] - 1
    return found


def test_rows_are_scaled_to_one_with_an_unknown_tail(source: Path, tokenizer: str, tmp_path: Path) -> None:
    assert excess(range(6)).max() > 0.5
    assert max(row.values.max() for row in budget_rows()) > 0.1  # a fitted log p may be above 0
    report = imported(
        source_format="distillkit", source=str(source), tokenizer=tokenizer, out=str(tmp_path / "cache"), pack=False
    )
    cache = open_cache(tmp_path / "cache")
    assert (report.documents, report.tail, cache.manifest.targets.tail_known) == (6, "unknown", False)
    for document, rows in zip(budget_rows(), cache, strict=True):
        assert rows.tokens.tolist() == document.columns["input_ids"]
        mass = np.exp(document.values).sum(axis=1, keepdims=True)
        due = document.values - np.log(np.maximum(mass, 1.0))
        for t in range(len(rows) - 1):
            here = slice(t * BUDGET.k, (t + 1) * BUDGET.k)
            found = dict(zip(rows.ids[here].tolist(), rows.logprobs[here].tolist(), strict=True))
            assert found.keys() == set(document.ids[t].tolist())
            nearest = [found[i] for i in document.ids[t].tolist()]
            np.testing.assert_allclose(nearest, due[t], atol=STEP / 2 + 2e-3)
    parts = Parts(str(tmp_path / "cache"))
    assert not [problem for number in range(report.parts) for problem in check_part(parts, number)]


def test_scaled_rows_are_counted_by_part_summed_and_shown(
    source: Path, tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mock.patch.object(importing, "MAX_ENTRIES_PER_PART", 120 * BUDGET.k):
        assert run(words(source, tokenizer, tmp_path / "cache", "--json")) == 0
        shown = capsys.readouterr()
        assert run(words(source, tokenizer, tmp_path / "cache")) == 0
        page = capsys.readouterr().out
    report = json.loads(shown.out)
    assert report["parts"] == 3
    parts = []
    for number in range(3):
        record = json.loads((tmp_path / "cache" / "parts" / f"{number:05}" / "part.json").read_bytes())
        numbers = range(record["first_document"], record["first_document"] + record["n_documents"])
        due = excess(numbers)
        assert record["scaled"]["n_rows"] == len(due) > 0
        assert record["scaled"]["largest_excess"] == pytest.approx(due.max(), rel=1e-4)
        assert record["scaled"]["median_excess"] == pytest.approx(np.median(due), rel=1e-3)
        parts.append((record["scaled"]["median_excess"], len(due)))
    medians = sorted(median for median, n_rows in parts for _ in range(n_rows))
    together = report["scaled"]
    assert together["rows"] == report["scaled_rows"] == len(excess(range(6)))
    assert together["largest_excess"] == pytest.approx(excess(range(6)).max(), rel=1e-4)
    assert together["median_excess"] == medians[(len(medians) - 1) // 2]
    largest = f"{together['largest_excess']:.3g}"
    assert f"{together['rows']:,} rows with a sum above 1 (by up to {largest})" in shown.err
    assert "--tail rest" in shown.err

    assert run(["cache", "inspect", str(tmp_path / "cache"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scaled"] == together
    assert run(["cache", "inspect", str(tmp_path / "cache")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["scaled"]]
    assert line.split()[1] == f"{together['rows']:,}" and largest in line
    assert line.split() in [shown_line.split() for shown_line in page.splitlines()]


def test_a_merged_cache_keeps_the_counts(source: Path, tokenizer: str, tmp_path: Path) -> None:
    halves = [budget_rows()[:3], budget_rows()[3:]]
    for number, rows in enumerate(halves):
        folder = write_source(tmp_path / f"source-{number}", [row.columns for row in rows])
        out = str(tmp_path / f"half-{number}")
        imported(source_format="distillkit", source=str(folder), tokenizer=tokenizer, out=out)
    merge([str(tmp_path / f"half-{number}") for number in range(2)], str(tmp_path / "both"))
    together = inspect_cache(tmp_path / "both").scaled
    assert together is not None
    assert together.rows == len(excess(range(6)))
    assert together.largest_excess == pytest.approx(excess(range(6)).max(), rel=1e-4)


def test_tail_rest_uses_the_tails_of_the_other_rows(source: Path, tokenizer: str, tmp_path: Path) -> None:
    place = {"source_format": "distillkit", "source": str(source), "tokenizer": tokenizer}
    report = imported(**place, out=str(tmp_path / "cache"), tail="rest", pack=False)
    assert report.tail == "rest"
    for document, rows in zip(budget_rows(), open_cache(tmp_path / "cache"), strict=True):
        left = 1 - np.exp(document.values[:-1]).sum(axis=1)
        assert rows.log_tail is not None
        np.testing.assert_allclose(np.exp(rows.log_tail[:-1]), np.maximum(left, 0), atol=2e-3)


def with_first_row(values: bytes) -> dict[str, Any]:
    """A document of the teacher's with other values at its first token."""
    columns = dict(budget_rows()[0].columns)
    columns["compressed_logprobs"] = [list(values), *columns["compressed_logprobs"][1:]]
    return columns


def test_a_cache_without_scaled_rows_has_no_such_key(tokenizer: str, tmp_path: Path) -> None:
    columns = dict(budget_rows()[0].columns)
    below_one = list(packed_values(BUDGET, [-1.0], [-4.0, 0.0, -0.5], []))
    columns["compressed_logprobs"] = [below_one] * len(columns["input_ids"])
    folder = write_source(tmp_path / "source", [columns])
    report = imported(source_format="distillkit", source=str(folder), tokenizer=tokenizer, out=str(tmp_path / "cache"))
    assert (report.scaled, report.scaled_rows, report.tail) == (None, 0, "rest")
    assert "scaled" not in json.loads((tmp_path / "cache" / "parts" / "00000" / "part.json").read_bytes())
    assert inspect_cache(tmp_path / "cache").scaled is None


@pytest.mark.parametrize(
    ("first", "coefficients", "named"),
    [
        (-0.5, [0.0, 0.0, 0.0], "add up to 49.61, impossible for 50"),
        (-0.5, [-2.5, 0.0, 0.0], "add up to 4.629, impossible for 50"),
        (-0.5, [8.0, 0.0, -3.5], "add up to 3105"),
        (-0.5, [200.0, 0.0, -900.0], "add up to 7.226e+86"),
        (-0.5, [float("inf"), 0.0, 0.0], "add up to inf"),
        (-0.5, [float("nan"), 0.0, 0.0], "a log-probability is nan"),
        (0.5, [-4.0, 0.0, -0.5], "a log-probability is 0.5"),
        (float("nan"), [-4.0, 0.0, -0.5], "a log-probability is nan"),
    ],
)
def test_values_that_the_codec_cannot_decode_to_are_refused(
    first: float, coefficients: list[float], named: str, tokenizer: str, tmp_path: Path
) -> None:
    row = with_first_row(packed_values(BUDGET, [first], coefficients, []))
    folder = write_source(tmp_path / "source", [budget_rows()[1].columns, row])
    with pytest.raises(ConfigError) as refused:
        imported(source_format="distillkit", source=str(folder), tokenizer=tokenizer, out=str(tmp_path / "cache"))
    assert refused.value.exit_code == 2
    assert refused.value.message.startswith("data_0.parquet, row 2: after token 0, ")
    assert named in refused.value.message
    assert not (tmp_path / "cache").exists()
