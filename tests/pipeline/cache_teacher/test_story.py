"""Stage one from documents to a sealed cache: what is in it, what a second run finds, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.cache.format.blocks import block_of, cut
from kdpipe.cache.format.rows import Block
from kdpipe.cache.opening import open_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.strict_json import sha256_file
from support.corpora import CHATML, TEXTS, chat_rows, write_jsonl
from support.corpora import small_tokenizer as make_tokenizer
from support.models import tiny_llama
from support.stage_one import LENGTH, VOCABULARY, RecordingProgress, make_inputs, run, settings_for

SMALL_PARTS = {"part_rows": 1024}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage_one")
    make_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[Path, Any, RecordingProgress]:
    progress = RecordingProgress()
    report = run(settings_for(folder, "whole", sequences=SMALL_PARTS), progress)
    return folder / "whole", report, progress


def test_documents_become_a_cache_that_verifies(made: tuple[Path, Any, RecordingProgress]) -> None:
    path, report, _ = made
    assert report.complete and report.cache_id is not None
    assert report.parts.made == report.parts.planned == report.parts.present > 3
    assert verify_cache(path, "deep").ok


def test_every_document_is_there_with_its_columns_and_its_split(
    made: tuple[Path, Any, RecordingProgress], folder: Path
) -> None:
    cache = open_cache(made[0])
    assert {split.name for split in cache.manifest.plan.splits} == {"train", "validation"}
    found: dict[tuple[str, int], set[str]] = {}
    for i in range(len(cache)):
        split = cache.locate(i)[0].record.split
        for document, category in zip(cache[i].documents.tolist(), cache.columns(i)["category"], strict=True):
            found.setdefault((split, document), set()).add(category)
    assert len(found) == 24
    assert all(len(categories) == 1 for categories in found.values())


def test_tokens_of_the_cache_are_those_of_the_documents(
    made: tuple[Path, Any, RecordingProgress], folder: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "teacher")
    cache = open_cache(made[0])
    stored = sorted(tokens.tolist() for rows in cache for tokens in np.split(rows.tokens, rows.document_starts[1:]))
    wanted = []
    for text in TEXTS[:24]:
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        wanted += [ids[i : i + LENGTH] for i in range(0, len(ids), LENGTH)]
    assert stored == sorted(segment for segment in wanted if len(segment) > 1)


def test_a_second_run_finds_everything_done(made: tuple[Path, Any, RecordingProgress], folder: Path) -> None:
    progress = RecordingProgress()
    report = run(settings_for(folder, "whole", sequences=SMALL_PARTS), progress)
    assert report.cache_id == made[1].cache_id
    assert report.parts.made == 0
    assert [update.facts["parts"] for update in progress.updates["cache-teacher"]] == [0]
    assert report.positions_per_second is None


def test_documents_and_columns_are_described(made: tuple[Path, Any, RecordingProgress]) -> None:
    messages = "\n".join(made[2].messages)
    assert "corpus.jsonl" in messages and "text = text" in messages and "kept = category" in messages
    assert all(line in messages for line in TEXTS[0].splitlines()[:3])
    assert "longer than 96 tokens" in messages
    updates = made[2].updates["cache-teacher"]
    assert updates[-1].facts["parts"] == made[1].parts.planned and updates[-1].done == made[1].positions
    assert all(0 <= update.facts["teacher"] <= 1 for update in updates)


def test_shards_make_the_same_cache_in_any_order(made: tuple[Path, Any, RecordingProgress], folder: Path) -> None:
    settings = settings_for(folder, "sharded", sequences=SMALL_PARTS)
    planned = made[1].parts.planned
    first = run(settings, shard=1, n_shards=3)
    # No other worker runs, so the first one also makes the parts of the others.
    assert first.complete and first.parts.made == planned
    assert first.cache_id == made[1].cache_id


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"targets": {"kind": "sampled", "draws": 20}},
        {"targets": {"kind": "topk", "top_k": 8}},
        {"targets": {"kind": "topp", "top_p": 0.7}},
        {"targets": {"kind": "state"}},
        {"targets": {"kind": "threshold", "target_temperature": 2.0, "draw_values": True}},
        {"targets": {"for_other_tokenizers": True}, "hidden": {"layers": ("0.5", "2"), "dim": 16}},
        {"hidden": {"layers": ("1.0",), "dim": 8, "projection": "pca", "pooled": False}},
        {"sequences": {"pack": False}},
    ],
    ids=["sampled", "topk", "topp", "state", "T=2", "boundary and rows", "pca", "one document a sequence"],
)
def test_every_kind_of_target_goes_the_whole_way(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = settings_for(folder, **changes).model_copy(update={"out": str(tmp_path / "cache")})
    report = run(settings)
    assert report.complete
    assert verify_cache(tmp_path / "cache", "deep").problems == ()
    assert report.positions == 0 or (report.entries_per_position is None) == (
        changes.get("targets", {}).get("kind") == "state"
    )


def by_document(path: Path) -> dict[tuple[str, int, bytes], Block]:
    """The targets of every piece, by its document and its digest."""
    cache = open_cache(path)
    found = {}
    for i in range(len(cache)):
        rows = cache[i]
        ends = np.append(rows.document_starts[1:], len(rows))
        split = cache.locate(i)[0].record.split
        names = [(split, *name) for name in zip(rows.documents.tolist(), cache.digests(i), strict=True)]
        found |= dict(zip(names, cut(block_of(rows), ends), strict=True))
    return found


@pytest.mark.slow
def test_documents_that_share_a_sequence_do_not_see_each_other(folder: Path, tmp_path: Path) -> None:
    """Packed, alone, and in other batches, a document has the same targets: kept ids, and numbers to float noise."""
    ways = {"packed": True, "alone": False}
    for way, pack in ways.items():
        settings = settings_for(folder, sequences={"pack": pack}, machine={"batch_tokens": 2048 if pack else 100})
        run(settings.model_copy(update={"out": str(tmp_path / way)}))
    packed, alone = by_document(tmp_path / "packed"), by_document(tmp_path / "alone")
    assert packed.keys() == alone.keys() and len(packed) > 24
    assert len(open_cache(tmp_path / "packed")) < len(open_cache(tmp_path / "alone")) == len(packed)
    for name, block in packed.items():
        twin = alone[name]
        np.testing.assert_array_equal(block.n_exact, twin.n_exact)
        np.testing.assert_array_equal(block.ids, twin.ids)
        # A number between two codes may be rounded to either: one step of the codec.
        np.testing.assert_allclose(block.logprobs, twin.logprobs, atol=1 / 16 + 1e-3)
        assert block.entropy is not None and twin.entropy is not None
        np.testing.assert_allclose(block.entropy, twin.entropy, atol=1 / 64 + 1e-5)


def test_tokens_alone_need_no_teacher(folder: Path, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "tokenizer", vocabulary=VOCABULARY)
    teacher = {"name": None, "tokenizer": str(tmp_path / "tokenizer")}
    settings = settings_for(folder, teacher=teacher, targets={"kind": "none"})
    report = run(settings.model_copy(update={"out": str(tmp_path / "cache")}))
    cache = open_cache(tmp_path / "cache")
    assert report.complete and cache.manifest.teacher is None
    assert verify_cache(tmp_path / "cache", "deep").problems == ()


def test_conversations_learn_their_answers_only(folder: Path, tmp_path: Path) -> None:
    make_tokenizer(tiny_llama(tmp_path / "teacher", vocabulary=VOCABULARY), vocabulary=VOCABULARY, chat_template=CHATML)
    write_jsonl(tmp_path / "corpus.jsonl", chat_rows(12))
    progress = RecordingProgress()
    report = run(settings_for(tmp_path, sequences={"length": 256}), progress)
    cache = open_cache(tmp_path / "cache")
    assert 0 < report.positions < sum(len(rows) for rows in cache) / 2
    assert cache.manifest.data.train_on == "assistant"
    assert cache.manifest.tokenizer.chat_template_sha256 is not None
    assert any("«" in line for line in progress.messages)


def test_a_dry_run_goes_the_whole_way_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    settings = settings_for(folder, sequences=SMALL_PARTS).model_copy(update={"out": str(tmp_path / "cache")})
    report = run(settings, dry_run=True)
    assert not (tmp_path / "cache").exists()
    assert report.positions > 500 and report.parts.made == 0 and not report.complete
    assert report.bytes_per_position is not None and report.entries_per_position is not None


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"targets": {"tau": 0.1}}, "--tau: existing 0.04, requested 0.1"),
        ({"sequences": {"length": 64}}, "--seq-len: existing 96, requested 64"),
        ({"data": {"limit": 20}}, "the documents, or how they are read"),
    ],
)
def test_another_spec_in_the_same_folder_is_refused_with_what_differs(
    made: tuple[Path, Any, RecordingProgress], folder: Path, changes: dict[str, Any], differs: str
) -> None:
    settings = settings_for(folder, "whole", **{"sequences": SMALL_PARTS | changes.pop("sequences", {}), **changes})
    with pytest.raises(ConfigError, match="holds another cache") as refused:
        run(settings)
    assert differs in refused.value.message


def test_another_teacher_in_the_same_folder_is_refused(
    made: tuple[Path, Any, RecordingProgress], folder: Path, tmp_path: Path
) -> None:
    make_tokenizer(tiny_llama(tmp_path / "teacher", vocabulary=VOCABULARY, seed=1), vocabulary=VOCABULARY)
    settings = settings_for(folder, "whole", sequences=SMALL_PARTS, teacher={"name": str(tmp_path / "teacher")})
    with pytest.raises(ConfigError, match=r"teacher's weights.*existing \w{8}\.\.\.,"):
        run(settings)


def test_parts_in_progress_on_other_workers_are_left_and_reported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CacheWriter, "under_way", lambda self: {0, 2})
    settings, progress = settings_for(folder, sequences=SMALL_PARTS), RecordingProgress()
    report = run(settings.model_copy(update={"out": str(tmp_path / "cache")}), progress)
    assert not report.complete and report.parts.made == report.parts.planned - 2
    assert progress.messages[-1].startswith("2 parts in progress")


def test_the_journal_names_the_worker_of_a_part(made: tuple[Path, Any, RecordingProgress]) -> None:
    record = json.loads((made[0] / "journal" / "00000.json").read_text())
    assert record["positions"] > 0 and record["seconds"] > 0
    assert record["part"] == 0 and record["part_sha256"] == sha256_file(made[0] / "parts/00000/part.json")
    assert verify_cache(made[0], "full").notes == ()


def test_where_data_lie_does_not_change_what_they_are(
    made: tuple[Path, Any, RecordingProgress], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    settings = settings_for(folder, "whole", sequences=SMALL_PARTS, data={"path": "corpus.jsonl"})
    assert run(settings).cache_id == made[1].cache_id
