"""Exports: read with `datasets` they equal the cache, and the report lists what they lack."""

import os
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from kdpipe.cache.durable.lock import LOCK
from kdpipe.cache.layout import WORK
from kdpipe.cache.opening import open_cache
from kdpipe.cache.reader import Cache
from kdpipe.pipeline import export_cache as exporting
from kdpipe.pipeline.export_cache import export_cache
from kdpipe.pipeline.interop.export_tables import table_rows
from kdpipe.pipeline.requantize import requantize
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.interop import ExportSettings, TablesReport
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.reshape import RequantizeSpec
from support.children import Child, in_child
from support.gates import Gate
from support.interop_sources import imported, random_rows, word_tokenizer, write_rows
from support.synthetic import Recipe
from support.tiny import SMALL, make_cache

BARE = replace(SMALL, hidden=False, text=False)
RECIPES: dict[str, Recipe] = {
    "threshold": SMALL,
    "sampled": replace(BARE, kind="sampled"),
    "topk": replace(BARE, kind="topk"),
    "imported": replace(BARE, kind="imported", tail_known=False),
    "none": replace(BARE, kind="none"),
}
every_kind = pytest.mark.parametrize("kind", RECIPES)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches")
    for kind, recipe in RECIPES.items():
        make_cache(folder / kind, recipe)
    make_cache(folder / "state", replace(BARE, kind="state"))
    return folder


def export(cache: Path, form: Any, out: Path, split: Any = None) -> TablesReport:
    return export_cache(ExportSettings(cache=str(cache), form=form, out=str(out), split=split), SilentProgress())


def loaded(folder: Path) -> Any:
    """The files as `datasets` finds them."""
    return datasets.load_dataset("parquet", data_dir=str(folder), cache_dir=str(folder.with_suffix(".hub")))


def nested(values: Any, counts: Any) -> list[list[Any]]:
    ends = np.cumsum(counts)
    return [values[end - n : end].tolist() for end, n in zip(ends, counts, strict=True)]


def same(found: Any, due: Any) -> None:
    """Equal numbers, NaN included."""
    np.testing.assert_array_equal(np.array(found, np.float64), np.array(due, np.float64))


@every_kind
def test_a_sequence_is_a_row_that_datasets_reads(kind: str, caches: Path, tmp_path: Path) -> None:
    report = export(caches / kind, "parquet", tmp_path / "out")
    tables = loaded(tmp_path / "out")
    assert set(tables) == {"train", "validation"}
    assert report.rows == sum(len(table) for table in tables.values())
    for split, table in tables.items():
        cache: Cache = open_cache(caches / kind, split)
        spec = cache.manifest.targets
        assert len(table) == len(cache)
        for row, due in zip(table, cache, strict=True):
            assert row.pop("tokens") == due.tokens.tolist()
            assert row.pop("loss_mask") == due.loss_mask.tolist()
            assert row.pop("document_starts") == due.document_starts.tolist()
            if spec.has_entries:
                assert row.pop("ids") == nested(due.ids, due.count)
                for name in ("logprobs", "weights"):
                    values = row.pop(name)
                    assert [len(each) for each in values] == due.count.tolist()
                    same([value for each in values for value in each], getattr(due, name))
            if spec.has_draws:
                assert row.pop("n_exact") == due.n_exact.tolist()
            for temperature, values in due.log_z.items():
                same(row.pop(f"log_z_{temperature}"), values)
            for name in ("log_tail", "entropy", "label_logprob", "boundary_logprob"):
                if (values := getattr(due, name)) is not None:
                    same(row.pop(name), values)
            assert row == {}


@pytest.mark.parametrize("kind", [kind for kind in RECIPES if kind != "none"])
def test_a_document_is_a_row_of_axolotls(kind: str, caches: Path, tmp_path: Path) -> None:
    report = export(caches / kind, "axolotl", tmp_path / "out", "train")
    (table,) = loaded(tmp_path / "out").values()
    rows = iter(table)
    n = 0
    for due in open_cache(caches / kind, "train"):
        exact = iter(zip(due.ids.tolist(), due.logprobs.tolist(), strict=True))
        entries = []
        for count, n_exact in zip(due.count.tolist(), due.n_exact.tolist(), strict=True):
            entries.append([next(exact) for _ in range(count)][:n_exact])
        ends = [*due.document_starts[1:].tolist(), len(due)]
        for start, end in zip(due.document_starts.tolist(), ends, strict=True):
            row, n = next(rows), n + 1
            tokens, mask = due.tokens[start:end].tolist(), due.loss_mask[start:end].tolist()
            assert row["input_ids"] == tokens
            assert row["attention_mask"] == [1] * len(tokens)
            # Token t has a label if row t - 1 is trained on.
            assert row["labels"] == [-100] + [t if m else -100 for t, m in zip(tokens[1:], mask[:-1], strict=True)]
            assert row["target_token_ids"] == [[i for i, _ in each] for each in entries[start:end]]
            assert row["target_logprobs"] == [[v for _, v in each] for each in entries[start:end]]
            assert row["target_mask"] == [[1] * len(each) for each in entries[start:end]]
            assert row["target_token_ids"][-1] == []
    assert report.rows == n == len(table)
    assert report.positions == open_cache(caches / kind, "train").n_positions


def test_information_that_a_format_cannot_represent_is_listed(caches: Path, tmp_path: Path) -> None:
    def left_out(kind: str, form: Any) -> tuple[str, ...]:
        return export(caches / kind, form, tmp_path / f"{kind}-{form}").left_out

    in_tables = ("hidden states", "text", "document columns", "teacher, tokenizer and checksums")
    of_axolotl = left_out("threshold", "axolotl")
    assert len(of_axolotl) == 5 + len(in_tables) and of_axolotl[5:] == in_tables
    assert {"tail mass", "entropy"} < set(of_axolotl)
    assert left_out("threshold", "parquet") == in_tables
    assert left_out("sampled", "parquet")[1:] == in_tables[2:]
    assert "tail mass" not in left_out("imported", "axolotl")


@pytest.fixture(scope="module")
def top_k(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A cache of plain top-k with a known tail, and the words to import its like."""
    folder = tmp_path_factory.mktemp("top-k")
    words = word_tokenizer(folder / "words", 40)
    rows = [
        {**row, "loss_mask": [t % 5 != 3 for t in range(len(row["tokens"]))]}
        for row in random_rows(5, 40, 4, range(3, 23))
    ]
    source = write_rows(folder / "rows.parquet", rows)
    shared = {"tokenizer": str(words), "val_fraction": 0.3}
    imported(source_format="topk", source=str(source), out=str(folder / "cache"), tail="rest", **shared)
    return {"folder": folder, "shared": shared}


def by_tokens(cache: Cache) -> dict[tuple[int, ...], dict[str, Any]]:
    """The targets of each document of a cache, by its tokens."""
    found = {}
    for rows in cache:
        ends = [*rows.document_starts[1:].tolist(), len(rows)]
        entries = np.concatenate([[0], np.cumsum(rows.count)])
        for start, end in zip(rows.document_starts.tolist(), ends, strict=True):
            here = slice(entries[start], entries[end])
            # Ids of one stored log p may change places.
            by_row = [
                dict(zip(ids, values, strict=True))
                for ids, values in zip(
                    nested(rows.ids[here], rows.count[start:end]), nested(rows.logprobs[here], rows.count[start:end]),
                    strict=True,
                )
            ]  # fmt: skip
            tail = None if rows.log_tail is None else rows.log_tail[start:end]
            mask = rows.loss_mask[start:end].tolist()
            found[tuple(rows.tokens[start:end].tolist())] = {"mask": mask, "rows": by_row, "log_tail": tail}
    return found


@pytest.mark.parametrize(("form", "back", "more"), [
    ("axolotl", "axolotl", {"tail": "rest", "align": "next"}),
    ("axolotl", "axolotl", {"tail": "unknown", "align": "next"}),
    ("parquet", "topk", {}),
])  # fmt: skip
def test_exported_top_k_is_imported_unchanged(
    form: Any, back: str, more: dict[str, Any], top_k: dict[str, Any], tmp_path: Path
) -> None:
    export(top_k["folder"] / "cache", form, tmp_path / "out")
    imported(source_format=back, source=str(tmp_path / "out"), out=str(tmp_path / "cache"), **top_k["shared"], **more)
    first, second = (by_tokens(open_cache(place / "cache")) for place in (top_k["folder"], tmp_path))
    assert first.keys() == second.keys()
    for tokens, due in first.items():
        found = second[tokens]
        assert found["mask"] == due["mask"]
        for now, before in zip(found["rows"], due["rows"], strict=True):
            assert now.keys() == before.keys()
            # What is stored in steps of 1/16 nat is stored so once more.
            assert all(abs(now[i] - before[i]) <= 1 / 16 for i in before)
        if more.get("tail") != "unknown":
            np.testing.assert_allclose(np.exp(found["log_tail"]), np.exp(due["log_tail"]), rtol=0, atol=2e-3)


def test_an_interrupted_export_resumes(caches: Path, tmp_path: Path) -> None:
    whole = export(caches / "topk", "parquet", tmp_path / "whole")
    numbers: list[int] = []

    def stop(*given: Any) -> Any:
        numbers.append(len(numbers))
        if len(numbers) == n_train:
            raise KeyboardInterrupt
        return table_rows(*given)

    n_train = len(open_cache(caches / "topk", "train"))
    with mock.patch.object(exporting, "table_rows", stop), pytest.raises(KeyboardInterrupt):
        export(caches / "topk", "parquet", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train-00000.parquet", "train-00001.parquet"]
    again = export(caches / "topk", "parquet", tmp_path / "out")
    assert (again.files, again.files_made) == (4, 2)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["train-00000.parquet", "train-00001.parquet", "train-00002.parquet", "validation-00003.parquet"]
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert again.model_copy(update={"folder": "", "seconds": 0.0, "files_made": 4}) == whole.model_copy(
        update={"folder": "", "seconds": 0.0}
    )


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_killed_export_resumes(caches: Path, tmp_path: Path) -> None:
    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        with mock.patch.object(exporting, "table_rows", die):
            export(caches / "topk", "parquet", tmp_path / "out")

    assert in_child(work).code == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [LOCK, WORK]
    assert export(caches / "topk", "parquet", tmp_path / "out").files_made == 4
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".parquet"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize(
    ("locks", "n_rounds"),
    [(True, 14), (False, 6), *(pytest.param(each, 100, marks=pytest.mark.soak) for each in (True, False))],
)
def test_of_two_exports_into_one_folder_one_wins(
    caches: Path, tmp_path: Path, locks: bool, n_rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locks:  # the work folders alone keep files apart
        monkeypatch.setattr(exporting, "locked", lambda folder, _: nullcontext(folder.mkdir(exist_ok=True)))
    for number in range(n_rounds):
        out, gate = tmp_path / str(number), Gate(2)

        def work(kind: str, out: Path = out, gate: Gate = gate) -> str:
            gate.pass_through()
            return str(export(caches / kind, "parquet", out).cache_id)

        kinds = ("topk", "sampled")
        children = [Child(partial(work, kind)) for kind in kinds]
        gate.wait()
        gate.open()
        ended = [child.wait() for child in children]
        gate.close()
        if not locks:
            check_files_of(out, {str(open_cache(caches / kind).cache_id) for kind in kinds})
            assert all(each.code in (0, 2) for each in ended) and sum(each.code == 0 for each in ended) <= 1, ended
            continue
        (won,), (lost,) = ([each for each in ended if (each.code == 0) == good] for good in (True, False))
        assert lost.code == 2, lost.output
        assert "is in use by process" in lost.output or "is not part of this export" in lost.output
        check_files_of(out, {won.output})
        assert len(list(out.iterdir())) == 4


def check_files_of(folder: Path, cache_ids: set[str]) -> None:
    """All files are whole, and of these caches."""
    for path in folder.iterdir():
        assert str(pq.read_table(path).schema.metadata[b"kdpipe.cache_id"], "utf-8") in cache_ids


def test_a_file_has_row_groups_of_some_thousand_tokens(caches: Path, tmp_path: Path) -> None:
    with mock.patch.object(exporting, "ROWS_PER_GROUP", 1):
        export(caches / "topk", "parquet", tmp_path / "out", "train")
    for path in (tmp_path / "out").iterdir():
        file = pq.ParquetFile(path)
        assert file.num_row_groups == file.metadata.num_rows > 1


def test_a_folder_with_other_things_is_refused(caches: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"letter\.txt"):
        export(caches / "topk", "parquet", tmp_path / "out")
    export(caches / "topk", "parquet", tmp_path / "other")
    with pytest.raises(ConfigError, match=r"train-00000\.parquet"):
        export(caches / "topk", "axolotl", tmp_path / "other")
    with pytest.raises(ConfigError, match=r"train-00000\.parquet"):
        export(caches / "sampled", "parquet", tmp_path / "other")


@pytest.mark.parametrize(("kind", "form"), [("state", "parquet"), ("state", "axolotl"), ("none", "axolotl")])
def test_a_cache_that_a_format_cannot_represent_is_refused(kind: str, form: Any, caches: Path, tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match=rf"kind {kind} .*--to {form}"):
        export(caches / kind, form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_states_can_be_requantized_to_ids_first(caches: Path, tmp_path: Path) -> None:
    with pytest.raises(Incompatible) as refusal:
        export(caches / "state", "parquet", tmp_path / "out")
    assert "kdpipe cache requantize --targets threshold" in str(refusal.value.hint)
    requantize(str(caches / "state"), str(tmp_path / "ids"), RequantizeSpec(targets="threshold"))
    assert export(tmp_path / "ids", "parquet", tmp_path / "out").rows == len(open_cache(caches / "state"))


def test_an_export_is_not_written_to_a_url_or_into_its_cache(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ExportSettings(cache=str(caches / "topk"), form="parquet", out="s3://bucket/tables")
    with pytest.raises(ConfigError, match="--out s3://bucket/tables is a URL"):
        export_cache(settings, SilentProgress())
    for out in (str(caches / "topk" / "tables" / "x"), f"file://{caches}/topk/x"):
        with pytest.raises(ConfigError, match=r"is inside the cache .*topk"):
            export_cache(settings.model_copy(update={"out": out}), SilentProgress())
    assert not list(tmp_path.iterdir())
    assert not (caches / "topk" / "x").exists()
    export_cache(settings.model_copy(update={"out": f"file://{tmp_path}/out"}), SilentProgress())
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_an_export_with_draws_cannot_be_imported_as_top_k(caches: Path, tmp_path: Path) -> None:
    export(caches / "threshold", "parquet", tmp_path / "out")
    words = word_tokenizer(tmp_path / "words", 300)
    with pytest.raises(ConfigError, match="a log-probability is nan"):
        imported(source_format="topk", source=str(tmp_path / "out"), tokenizer=str(words), out=str(tmp_path / "cache"))
