"""A whole import: manifest and report, parts and splits, resuming, and hostile files."""

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.pipeline import import_cache as importing
from kdpipe.pipeline.import_cache import import_cache
from kdpipe.pipeline.interop.imported_sequences import token_sizes
from kdpipe.pipeline.tokenizers.tokenizer import load_tokenizer
from kdpipe.schemas.errors import CacheDamaged, ConfigError
from kdpipe.schemas.interop import ImportReport, ImportSettings, import_settings
from support.corpora import small_tokenizer
from support.interop_sources import imported, random_rows, surveyed, word_tokenizer, write_rows
from support.stage_one import RecordingProgress

N_IDS, K = 40, 3
ROWS = random_rows(11, N_IDS, K, tuple(range(4, 28)))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(word_tokenizer(tmp_path_factory.mktemp("tokenizers") / "words", N_IDS))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files in a folder, of several row groups."""
    folder = tmp_path_factory.mktemp("source")
    write_rows(folder / "b.parquet", ROWS[10:], row_group_size=4)
    write_rows(folder / "a.jsonl", ROWS[:10])
    return folder


def settings_of(source: Path, tokenizer: str, out: Path, **settings: Any) -> dict[str, Any]:
    place = {"source": str(source), "tokenizer": tokenizer, "out": str(out)}
    return {"source_format": "topk", "tail": "rest", **place, **settings}


def small_parts() -> Any:
    """Parts of about 60 rows."""
    return mock.patch.object(importing, "MAX_ENTRIES_PER_PART", 60 * K)


def digests(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_rows_of_equal_tokens_are_counted_in_the_plan(tokenizer: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [*ROWS, ROWS[2], ROWS[5], ROWS[2]])
    imported(**settings_of(tmp_path / "rows.jsonl", tokenizer, tmp_path / "cache", val_fraction=0.0))
    (split,) = open_cache(tmp_path / "cache").manifest.plan.splits
    assert split.duplicates == 3
    report = verify_cache(tmp_path / "cache", "deep")
    assert report.ok and "3 documents are duplicates of an earlier one (3 in the data)" in report.notes[0].what


def test_every_document_is_kept_once_in_its_split(source: Path, tokenizer: str, tmp_path: Path) -> None:
    with small_parts():
        report = imported(**settings_of(source, tokenizer, tmp_path / "cache", val_fraction=0.3))
    assert report.parts > 3
    found: dict[tuple[int, ...], Any] = {}
    for split in ("train", "validation"):
        for rows in open_cache(tmp_path / "cache", split):
            ends = [*rows.document_starts[1:].tolist(), len(rows)]
            entries = np.concatenate([[0], np.cumsum(rows.count)])
            for start, end, number in zip(rows.document_starts.tolist(), ends, rows.documents.tolist(), strict=True):
                ids = rows.ids[entries[start] : entries[end]].reshape(-1, K).tolist()
                found[tuple(rows.tokens[start:end].tolist())] = split, number, ids
    assert len(found) == len(ROWS) == report.documents
    numbers: dict[str, list[int]] = {"train": [], "validation": []}
    for row in ROWS:
        split, number, ids = found[tuple(row["tokens"])]
        assert ids == row["ids"][:-1]
        numbers[split].append(number)
    # In each split documents are numbered in the order of the files.
    assert all(each == list(range(len(each))) for each in numbers.values())
    assert len(numbers["validation"]) > 2
    assert verify_cache(str(tmp_path / "cache"), "full").ok


def test_documents_share_sequences_unless_packing_is_off(source: Path, tokenizer: str, tmp_path: Path) -> None:
    imported(**settings_of(source, tokenizer, tmp_path / "packed"))
    imported(**settings_of(source, tokenizer, tmp_path / "apart", pack=False))
    packed, apart = open_cache(tmp_path / "packed"), open_cache(tmp_path / "apart")
    assert len(apart) == len(ROWS) > len(packed)
    assert packed.manifest.plan.sequence_length == max(len(row["tokens"]) for row in ROWS)
    assert packed.n_positions == apart.n_positions == sum(len(row["tokens"]) - 1 for row in ROWS)


def test_the_manifest_states_the_source_and_what_it_lacks(source: Path, tokenizer: str, tmp_path: Path) -> None:
    who = {"teacher_name": "someone/large", "teacher_revision": "abc", "teacher_license": "apache-2.0"}
    progress = RecordingProgress()
    report = import_cache(ImportSettings(**settings_of(source, tokenizer, tmp_path / "cache", **who)), progress)
    stated = open_cache(tmp_path / "cache").manifest
    assert stated.teacher is not None
    assert (stated.teacher.name, stated.teacher.revision, stated.teacher.license) == tuple(who.values())
    assert (stated.teacher.full_distribution, stated.teacher.dtype) == (False, "unknown")
    assert (stated.targets.temperatures, stated.targets.entropy) == ((), False)
    origin = stated.history[0]
    assert (origin.action, origin.caches) == ("import", ())
    assert all(what in origin.note for what in report.unknown)
    assert "entropy" in report.unknown
    assert "teacher" not in report.unknown
    assert stated.data.source == f"topk: {source.name}"
    assert progress.messages == [
        "source     2 files of topk: list t predicts token t + 1",
        f"rows       24 with {report.positions} positions, up to 27 tokens",
    ]
    (update,) = progress.updates["import"]
    assert (update.done, update.facts) == (1, {"positions": report.positions})


def test_repairs_are_reported_and_recorded_in_the_manifest(tokenizer: str, tmp_path: Path) -> None:
    rows = [dict(row) for row in ROWS[:3]]
    rows[0] = {**rows[0], "logprobs": [[*rows[0]["logprobs"][0][:2], -1e9], *rows[0]["logprobs"][1:]]}
    rows[1] = {**rows[1], "ids": [[], *rows[1]["ids"][1:]], "logprobs": [[], *rows[1]["logprobs"][1:]]}
    rows[2] = {**rows[2], "logprobs": [[-0.01, -4.0, -5.0], *rows[2]["logprobs"][1:]]}
    progress = RecordingProgress()
    source = write_rows(tmp_path / "rows.jsonl", rows)
    report = import_cache(ImportSettings(**settings_of(source, tokenizer, tmp_path / "cache")), progress)
    assert (report.padding_entries, report.rows_without_targets, report.scaled_rows) == (1, 1, 1)
    assert [line.partition(" ")[0] for line in progress.warnings] == ["1", "1", "1"]
    assert "0.0151" in progress.warnings[2]
    note = open_cache(tmp_path / "cache").manifest.history[0].note
    assert all(what in note for what in progress.warnings)


@pytest.mark.slow
def test_an_interrupted_import_resumes_to_the_same_cache(source: Path, tokenizer: str, tmp_path: Path) -> None:
    with small_parts():
        whole = imported(**settings_of(source, tokenizer, tmp_path / "whole", val_fraction=0.3))
        place = settings_of(source, tokenizer, tmp_path / "stopped", val_fraction=0.3)
        begun = CacheWriter.part

        def stop(self: CacheWriter, number: int) -> Any:
            if number == 3:
                raise KeyboardInterrupt
            return begun(self, number)

        with mock.patch.object(CacheWriter, "part", stop), pytest.raises(KeyboardInterrupt):
            imported(**place)
        # A part in the middle is missing too: all missing parts are made again.
        shutil.rmtree(tmp_path / "stopped" / "parts" / "00001")
        again = imported(**place)
        assert (again.parts_made, again.cache_id) == (whole.parts - 2, whole.cache_id)
        nothing = imported(**place)
    assert (nothing.parts_made, nothing.cache_id) == (0, whole.cache_id)
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


def test_a_changed_source_does_not_resume_the_old_cache(source: Path, tokenizer: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    imported(**settings_of(copy, tokenizer, tmp_path / "cache"))
    changed = [{**row, "logprobs": [[v - 0.5 for v in each] for each in row["logprobs"]]} for row in ROWS[:10]]
    write_rows(copy / "a.jsonl", changed)
    with pytest.raises(ConfigError, match="holds another cache: the documents, or how they are read"):
        imported(**settings_of(copy, tokenizer, tmp_path / "cache"))


def test_edge_cases_are_imported(tokenizer: str, tmp_path: Path) -> None:
    """One token, all ids of the vocabulary, equal log p, an empty tail, a single id of probability 1."""
    everything, nothing_more = [float(-np.log(N_IDS))] * N_IDS, [0.0]
    rows = [
        {"tokens": [5], "ids": [[]], "logprobs": [[]]},
        {"tokens": [7, 8, 9], "ids": [list(range(N_IDS)), [3], []], "logprobs": [everything, nothing_more, []]},
        {"tokens": [1, 2], "ids": [[4, 2]], "logprobs": [[-0.7, -0.7]]},
    ]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    report = imported(**settings_of(source, tokenizer, tmp_path / "cache", pack=False))
    assert (report.documents, report.positions, report.rows_without_targets) == (3, 3, 0)
    one, many, two = open_cache(tmp_path / "cache")
    assert (one.loss_mask.tolist(), one.ids.tolist()) == ([False], [])
    assert many.ids.tolist() == [*range(N_IDS), 3]
    assert many.log_tail is not None
    assert many.log_tail[0] < -15
    assert many.log_tail[1] == -np.inf
    assert np.exp(many.logprobs[:N_IDS]).sum() == pytest.approx(1, abs=1e-4)
    assert many.logprobs[N_IDS] == 0
    assert two.ids.tolist() == [2, 4]
    assert two.label_logprob is not None
    assert two.label_logprob[0] == pytest.approx(-0.7, abs=1 / 16)
    assert verify_cache(str(tmp_path / "cache"), "full").ok


def test_limit_imports_the_first_rows_only(source: Path, tokenizer: str, tmp_path: Path) -> None:
    report = imported(**settings_of(source, tokenizer, tmp_path / "cache", limit=12))
    assert report.documents == 12


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"val_fraction": 1.0}, "val_fraction: input should be less than 1"),
        ({"limit": 0}, "limit: input should be greater than or equal to 1"),
        ({"teacher_name": ""}, "teacher_name: string should have at least 1 character"),
    ],
)
def test_options_out_of_bounds_are_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        import_settings(**settings_of(tmp_path, "words", tmp_path / "cache", **change))


def test_invalid_places_are_refused_before_anything_is_read(source: Path, tokenizer: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is inside the source directory"):
        imported(**settings_of(source, tokenizer, source / "cache"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"has other files and no manifest.json: letter.txt"):
        imported(**settings_of(source, "no tokenizer either", tmp_path / "full"))
    with pytest.raises(ConfigError, match="--out s3://bucket/cache is a URL"):
        imported(**settings_of(source, tokenizer, tmp_path) | {"out": "s3://bucket/cache"})
    with pytest.raises(ConfigError, match=r"no such source: nothing\.parquet"):
        imported(**settings_of(Path("nothing.parquet"), tokenizer, tmp_path / "cache"))


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("a.txt", "words", r"a\.txt is neither"),
        ("a.json", "[]", r"a\.json is a single JSON list"),
        ("a.jsonl", "", "the source has no rows"),
        ("a.jsonl", '{"tokens": [1, 2], "ids": [[1], [2]], "logprobs": [[-1.0], [-1.0]]}\n{', "row 2: not valid JSON"),
        ("a.parquet", "PAR1", "cannot be read as Parquet"),
    ],
)
def test_invalid_files_are_refused(name: str, text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=named):
        surveyed(N_IDS, source_format="topk", source=str(tmp_path / name))


def test_a_source_without_positions_to_train_on_is_refused(tokenizer: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{**row, "loss_mask": [False] * len(row["tokens"])} for row in ROWS])
    with pytest.raises(ConfigError, match="no row has a position to train on"):
        imported(**settings_of(source, tokenizer, tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_source_without_rows_is_refused(tmp_path: Path) -> None:
    empty = pa.table({"tokens": pa.array([], pa.list_(pa.int64())), "ids": pa.array([], pa.list_(pa.list_(pa.int64()))),
                      "logprobs": pa.array([], pa.list_(pa.list_(pa.float64())))})  # fmt: skip
    pq.write_table(empty, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="the source has no rows"):
        surveyed(N_IDS, source_format="topk", source=str(tmp_path / "a.parquet"))


def test_an_invalid_first_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"tokens": [1, 2\n')
    with pytest.raises(ConfigError, match=r"a\.jsonl, row 1: not valid JSON"):
        surveyed(N_IDS, source_format="topk", source=str(tmp_path / "a.jsonl"))


def test_columns_of_other_types_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", [{"tokens": ["a"], "ids": [[1]], "logprobs": [[-1.0]]}])
    with pytest.raises(ConfigError, match=r"tokens .*list<.*string>"):
        surveyed(N_IDS, source_format="topk", source=str(tmp_path / "a.parquet"))


@pytest.mark.slow
def test_a_small_file_cannot_exhaust_memory(tmp_path: Path) -> None:
    """Eighteen million equal numbers are a few thousand bytes of Parquet."""
    row = {
        "the.tokens": pa.ListArray.from_arrays([0, 18_000_000], np.zeros(18_000_000, np.int8)),
        "ids": pa.array([[[1]]]),
        "logprobs": pa.array([[[-1.0]]]),
    }
    pq.write_table(pa.table(row), tmp_path / "a.parquet", use_dictionary=False, compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 15_000
    with pytest.raises(ConfigError, match=r"unfolds to 18,000,00\d values from [\d,]+ bytes, which no such file does"):
        surveyed(N_IDS, source_format="topk", source=str(tmp_path / "a.parquet"), columns={"tokens": "the.tokens"})


def test_token_sizes_are_the_bytes_of_their_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(small_tokenizer(tmp_path / "bytes")))
    sizes = token_sizes(tokenizer)
    text = "Naïve words, and more of them: 東京."
    (encoding,) = tokenizer.encode([text], False)
    assert int(sizes[encoding.ids].sum()) == len(text.encode())
    assert sizes[tokenizer.stop] == 0
    words = token_sizes(load_tokenizer(str(word_tokenizer(tmp_path / "words", 120))))
    # A word-level tokenizer puts a space between words.
    assert words[[0, 1, 15, 110]].tolist() == [0, 3, 4, 5]


def test_an_import_does_not_resume_a_damaged_cache(source: Path, tokenizer: str, tmp_path: Path) -> None:
    imported(**settings_of(source, tokenizer, tmp_path / "cache"))
    (tmp_path / "cache" / "manifest.json").write_bytes(b"{")
    with pytest.raises(CacheDamaged, match=r"manifest\.json"):
        imported(**settings_of(source, tokenizer, tmp_path / "cache"))


def test_the_report_counts_what_the_cache_holds(source: Path, tokenizer: str, tmp_path: Path) -> None:
    report: ImportReport = imported(**settings_of(source, tokenizer, tmp_path / "cache"))
    cache = open_cache(tmp_path / "cache")
    assert (report.cache_id, report.positions, report.parts) == (cache.cache_id, cache.n_positions, 1)
    assert report.entries_per_position == K
    assert report.bytes == sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
