"""The corpus: documents of every format end up as the same pieces, any range alone, with nothing lost unseen."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdpipe.pipeline.documents import corpus as module
from kdpipe.pipeline.documents.corpus import Corpus
from kdpipe.pipeline.documents.open_corpus import open_corpus
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.documents.tokenize import DocumentCounts
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, load_tokenizer
from kdpipe.schemas.capture_settings import Columns, DataSettings
from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.errors import ConfigError, KdpipeError
from kdpipe.schemas.manifest import SourceColumn
from support.corpora import (
    CHATML,
    ENDLESS,
    PICKY,
    TEXTS,
    chat_rows,
    pair_rows,
    small_tokenizer,
    text_rows,
    with_system,
    write_jsonl,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> LoadedTokenizer:
    return load_tokenizer(str(small_tokenizer(tmp_path_factory.mktemp("plain"))))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> LoadedTokenizer:
    return load_tokenizer(str(small_tokenizer(tmp_path_factory.mktemp("chat"), chat_template=CHATML)))


def opened(path: Path | str, tokenizer: LoadedTokenizer, **settings: Any) -> Corpus:
    return open_corpus(DataSettings(path=str(path), **settings), tokenizer)


def all_pieces(corpus: Corpus, split: SplitName = "train", length: int = 64) -> list[Segment]:
    return list(corpus.segments(split, 0, corpus.splits[split], length))


def digests(segments: list[Segment]) -> list[tuple[int, int, bytes]]:
    return [(segment.document, segment.offset, segment.digest) for segment in segments]


def in_format(kind: str, folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"corpus.{kind}"
    if kind == "jsonl":
        return write_jsonl(path, rows)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("make", [text_rows, pair_rows, chat_rows])
def test_every_format_gives_the_same_corpus(make: Any, chat: LoadedTokenizer, tmp_path: Path) -> None:
    corpora = [
        opened(in_format(kind, tmp_path, make(30)), chat, val_fraction=0.2) for kind in ("jsonl", "json", "parquet")
    ]
    assert len({corpus.fingerprint for corpus in corpora}) == 1
    assert len({str([digests(all_pieces(corpus, split)) for split in corpus.splits]) for corpus in corpora}) == 1
    assert sum(corpora[0].splits.values()) == 30


def test_any_range_of_documents_equals_that_of_the_whole(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "a.jsonl", text_rows(100))
    in_format("parquet", tmp_path / "data", text_rows(100)[40:])
    corpus = opened(tmp_path / "data", tokenizer)
    whole = digests(all_pieces(corpus))
    for first, n in ((0, 1), (17, 60), (90, 40), (corpus.splits["train"] - 1, 1)):
        part = digests(list(corpus.segments("train", first, n, 64)))
        assert part == [each for each in whole if first <= each[0] < first + n]


def test_tokens_of_segments_are_those_of_the_tokenizer(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS[:5]])
    corpus = opened(path, tokenizer, val_fraction=0.0)
    for number, text in enumerate(TEXTS[:5]):
        found = list(corpus.segments("train", number, 1, 64))
        assert (
            np.concatenate([segment.tokens for segment in found]).tolist()
            == [
                *tokenizer.fast(text)["input_ids"],
                tokenizer.stop,
            ][: sum(map(len, found))]
        )
        assert "".join(segment.text or "" for segment in found) == text
        assert all(segment.loss_mask[:-1].all() and not segment.loss_mask[-1] for segment in found)


def test_a_conversation_of_the_corpus_is_masked_as_transformers_masks_it(chat: LoadedTokenizer, tmp_path: Path) -> None:
    """The oracle renders with {% generation %} marks, which transformers follows itself."""
    marks = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}"
        "{% endfor %}"
    )
    rows = chat_rows(10)
    corpus = opened(write_jsonl(tmp_path / "a.jsonl", rows), chat, val_fraction=0.0)
    for number, row in enumerate(rows):
        (segment,) = corpus.segments("train", number, 1, 1000)
        oracle: Any = chat.fast.apply_chat_template(
            row["messages"], chat_template=marks, return_dict=True, return_assistant_tokens_mask=True
        )
        assert segment.tokens.tolist() == oracle["input_ids"]
        assert segment.loss_mask.tolist() == [*map(bool, oracle["assistant_masks"][1:]), False]


def test_the_form_of_documents_is_found_per_file(chat: LoadedTokenizer, tmp_path: Path) -> None:
    texts, pairs, chats = text_rows(8), pair_rows(8), chat_rows(8)
    write_jsonl(tmp_path / "a.jsonl", texts)
    write_jsonl(tmp_path / "b.jsonl", pairs)
    write_jsonl(tmp_path / "c.jsonl", chats)
    (tmp_path / "d.csv").write_text("content,category\na b c,x\n", encoding="utf-8")
    (tmp_path / "e.py").write_text("import this\n", encoding="utf-8")
    corpus = opened(tmp_path, chat, val_fraction=0.0, text_files=("*.py",))
    assert corpus.splits == {"train": 26, "validation": 0}
    assert corpus.bad_rows == (0, ())
    assert [mapping.form for mapping in corpus.mappings] == ["text", "pair", "messages", "text", "text"]
    alone = [opened(path, chat, val_fraction=0.0, text_files=("*.py",)) for path in sorted(tmp_path.iterdir())]
    parts = [segment.digest for one in alone for segment in all_pieces(one)]
    assert [segment.digest for segment in all_pieces(corpus)] == parts
    kept = [segment.columns["category"] for segment in all_pieces(corpus)]
    assert kept[-1] is None
    assert kept[-2] == "x"
    masks = {
        corpus.place("train", segment.document)[0]: bool(segment.loss_mask[:-1].all()) for segment in all_pieces(corpus)
    }
    assert masks == {"a": True, "b": False, "c": False, "d": True, "e": True}
    assert corpus.train_on == "assistant"


def test_a_text_file_over_the_limit_is_several_documents_with_one_stop_token(
    tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    book = "\n\n".join(TEXTS * 4)
    (tmp_path / "book.txt").write_text(book, encoding="utf-8")
    corpus = opened(tmp_path / "book.txt", tokenizer, val_fraction=0.0, max_document_bytes=2000)
    assert corpus.splits["train"] > 2
    assert corpus.bad_rows == (0, ())
    segments = all_pieces(corpus, length=10_000)
    assert [tokenizer.stop in segment.tokens for segment in segments] == [False] * (len(segments) - 1) + [True]
    text = "".join(tokenizer.fast.decode(segment.tokens, skip_special_tokens=True) for segment in segments)
    assert text == book
    held_out = opened(tmp_path / "book.txt", tokenizer, val_fraction=0.1, max_document_bytes=60_000)
    assert held_out.splits["validation"] > 0


def test_columns_are_kept_in_their_types(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    rows = [{"text": "a b", "score": 1, "ok": True}, {"text": "c d", "score": 0.5, "ok": None}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    corpus = opened(path, tokenizer, val_fraction=0.0, columns=Columns(keep=("score", "ok")))
    assert corpus.columns == (SourceColumn(name="score", type="float64"), SourceColumn(name="ok", type="bool"))
    kept = [segment.columns for segment in all_pieces(corpus)]
    assert kept == [{"score": 1.0, "ok": True}, {"score": 0.5, "ok": None}]
    assert isinstance(kept[0]["score"], float)


def test_the_sample_shows_what_is_trained_on(chat: LoadedTokenizer, tmp_path: Path) -> None:
    corpus = opened(write_jsonl(tmp_path / "a.jsonl", pair_rows(9)), chat, val_fraction=0.0)
    assert corpus.mappings[0].describe() == {"prompt": "prompt", "response": "response", "kept": "category"}
    assert corpus.train_on == "assistant"
    assert corpus.sample(3)[1] == [
        ("<|im_start|>user\nWhat about 3?<|im_end|>\n<|im_start|>assistant\n", False),
        (f"{TEXTS[3][:120]}<|im_end|>", True),
        ("\n", False),
    ]
    ((text, trained),) = opened(tmp_path / "a.jsonl", chat, train_on="all").sample(3, most=40)[1]
    assert trained
    assert text.startswith("<|im_start|>user\nWha ... ")
    assert len(text) == 45


def test_separate_validation_data_are_read(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", text_rows(20))
    other = write_jsonl(tmp_path / "b.jsonl", [{"text": "only this"}])
    corpus = opened(tmp_path / "a.jsonl", tokenizer, val_path=str(other), limit=5)
    assert corpus.splits == {"train": 5, "validation": 1}
    (segment,) = all_pieces(corpus, "validation")
    assert segment.text == "only this"
    assert corpus.place("validation", 0) == "b.jsonl:1"
    assert corpus.source == "a.jsonl + b.jsonl"


def test_val_fraction_holds_out_documents(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", text_rows(150))
    splits = opened(path, tokenizer, val_fraction=0.3).splits
    assert 25 <= splits["validation"] <= 65
    assert opened(path, tokenizer, val_fraction=0.0).splits["validation"] == 0


def test_the_fingerprint_depends_on_everything_that_tokens_depend_on(chat: LoadedTokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", pair_rows(9))
    ways: list[dict[str, Any]] = [
        {},
        {"train_on": "all"},
        {"append_stop": False},
        {"chat_template": "none"},
        {"long_documents": "truncate"},
        {"val_fraction": 0.5},
        {"limit": 8},
        {"columns": Columns(keep=())},
        {"columns": Columns(text="response")},
    ]
    assert len({opened(path, chat, **way).fingerprint for way in ways}) == len(ways)
    copy = write_jsonl(tmp_path / "elsewhere" / "b.jsonl", pair_rows(9))
    assert opened(copy, chat).fingerprint == opened(path, chat).fingerprint


def test_long_documents_are_refused_with_refuse(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", text_rows(3))
    corpus = opened(path, tokenizer, long_documents="refuse", val_fraction=0.0)
    with pytest.raises(ConfigError, match=r"a\.jsonl:1 has \d+ tokens, --seq-len allows 16") as caught:
        all_pieces(corpus, length=16)
    assert "data.long_documents=split" in str(caught.value.hint)


def test_documents_are_counted_by_outcome(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", text_rows(10))
    corpus = opened(path, tokenizer, long_documents="truncate", val_fraction=0.0)
    found = all_pieces(corpus, length=16)
    assert (corpus.counts.documents, corpus.counts.segments, corpus.counts.truncated_documents) == (10, 10, 10)
    assert corpus.counts.positions == sum(int(segment.loss_mask.sum()) for segment in found) == 150


def test_a_part_with_too_many_rows_is_refused(
    tokenizer: LoadedTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = opened(write_jsonl(tmp_path / "a.jsonl", text_rows(10)), tokenizer, val_fraction=0.0)
    monkeypatch.setattr(module, "MAX_PART_ROWS", 100)
    with pytest.raises(KdpipeError, match="documents 0 to 10 of train have more than 100 tokens"):
        all_pieces(corpus)


def test_a_turn_without_a_stop_is_refused_by_its_place_in_the_data(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(small_tokenizer(tmp_path / "tokenizer", chat_template=ENDLESS)))
    corpus = opened(write_jsonl(tmp_path / "a.jsonl", chat_rows(3)), tokenizer, val_fraction=0.0)
    with pytest.raises(ConfigError, match=r"a\.jsonl:3: assistant turn 1"):
        list(corpus.segments("train", 2, 1, 64))


def test_untrainable_documents_are_skipped_and_counted_with_skip(tmp_path: Path) -> None:
    chat = load_tokenizer(str(small_tokenizer(tmp_path / "tokenizer", chat_template=PICKY)))
    rows = chat_rows(40)
    for number in (0, 7, 33):
        rows[number] = with_system(rows[number])
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    refusing = opened(path, chat, val_fraction=0.0)
    refusal = r"a\.jsonl:1: .*: no system message"
    with pytest.raises(ConfigError, match=refusal):
        refusing.sample()
    corpus = opened(path, chat, val_fraction=0.0, untrainable="skip")
    assert corpus.fingerprint == refusing.fingerprint
    assert corpus.sample()[0] == "a.jsonl:2"
    assert {segment.document for segment in all_pieces(corpus)} == set(range(40)) - {0, 7, 33}
    assert (corpus.counts.documents, corpus.counts.untrainable_documents) == (37, 3)
    assert [why.split(": ")[0] for why in corpus.counts.untrainable] == ["a.jsonl:1", "a.jsonl:8", "a.jsonl:34"]
    plain = opened(write_jsonl(tmp_path / "b.jsonl", chat_rows(40)), chat, val_fraction=0.0)
    assert corpus.tokens_per_byte() == pytest.approx(plain.tokens_per_byte(), rel=0.02)


def test_data_without_a_trainable_document_are_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(small_tokenizer(tmp_path / "tokenizer", chat_template=ENDLESS)))
    corpus = opened(write_jsonl(tmp_path / "a.jsonl", chat_rows(3)), tokenizer, untrainable="skip")
    with pytest.raises(ConfigError, match=r"none of the first 2 documents of a\.jsonl is trainable") as caught:
        corpus.sample()
    assert "data.untrainable=refuse" in str(caught.value.hint)


def test_bad_rows_are_reported(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": ""}, {"text": "b"}])
    corpus = opened(path, tokenizer, val_fraction=0.0)
    assert corpus.bad_rows == (1, ("a.jsonl:2: text is empty",))
    assert [corpus.place("train", i) for i in (0, 1)] == ["a.jsonl:1", "a.jsonl:3"]


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (
            [{"text": ""}],
            r"no usable document; 1 invalid row\. The first: a\.jsonl:1: text is empty",
        ),
        ([], "has no rows"),
        (["a", 5], r"no valid row\. .*a\.jsonl:1: a string, expected an object; a\.jsonl:2"),
    ],
)
def test_data_without_a_document_are_refused(
    rows: list[Any], named: str, tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        opened(write_jsonl(tmp_path / "a.jsonl", rows), tokenizer)


def test_validation_data_without_a_document_are_refused(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", text_rows(3))
    other = write_jsonl(tmp_path / "b.jsonl", [{"body": "a"}])
    with pytest.raises(ConfigError, match=r"b\.jsonl has no usable document.*b\.jsonl:1: text is missing") as caught:
        opened(path, tokenizer, val_path=str(other))
    assert str(caught.value.hint).endswith(": text")


def test_a_fraction_that_leaves_nothing_to_train_on_is_refused(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "a"}])
    with pytest.raises(ConfigError, match=r"all 2 documents .*--val-fraction 0\.99") as caught:
        opened(path, tokenizer, val_fraction=0.999999)
    assert "--val-fraction" in str(caught.value.hint)


def test_no_data_are_refused(tokenizer: LoadedTokenizer) -> None:
    with pytest.raises(ConfigError, match="no data given") as caught:
        open_corpus(DataSettings(), tokenizer)
    assert "--data" in str(caught.value.hint)


def test_tokens_per_byte_are_those_of_an_even_sample(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    corpus = opened(write_jsonl(tmp_path / "a.jsonl", text_rows(50)), tokenizer, val_fraction=0.2)
    n_tokens = sum(len(tokenizer.fast(row["text"])["input_ids"]) + 1 for row in text_rows(50))
    n_bytes = sum(len(row["text"].encode()) for row in text_rows(50))
    assert corpus.tokens_per_byte() == n_tokens / n_bytes
    assert corpus.plan(64).splits[0].bounds == (0, corpus.splits["train"])
    assert corpus.counts.documents == 0


def test_tokens_are_counted_over_all_documents_or_an_even_sample(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    corpus = opened(write_jsonl(tmp_path / "a.jsonl", text_rows(60)), tokenizer, val_fraction=0.0)
    counts = corpus.token_counts(512)
    ids = np.concatenate([segment.tokens for segment in all_pieces(corpus, length=4096)])
    assert counts.dtype == np.int64
    assert counts.tolist() == np.bincount(ids, minlength=512).tolist()
    some = corpus.token_counts(512, limit_tokens=3000)
    assert 1500 < some.sum() < 4500


def test_a_plan_follows_the_size_of_the_data(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    corpus = opened(write_jsonl(tmp_path / "a.jsonl", text_rows(200)), tokenizer)
    assert corpus.plan(64, tokens_per_byte=1.0).n_parts > corpus.plan(64, packed=False, tokens_per_byte=0.1).n_parts
    assert not corpus.plan(64, packed=False).packed


def test_a_file_that_changes_during_the_run_is_refused(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    corpus = opened(write_jsonl(tmp_path / "a.jsonl", text_rows(5)), tokenizer, val_fraction=0.0)
    write_jsonl(tmp_path / "a.jsonl", text_rows(6))
    with pytest.raises(ConfigError, match="changed while it was read"):
        all_pieces(corpus)


def test_sampled_segments_are_evenly_spaced_and_not_counted(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    corpus = opened(write_jsonl(tmp_path / "a.jsonl", text_rows(50)), tokenizer, val_fraction=0.0)
    counts = DocumentCounts()
    found = list(corpus.sample_segments("train", 8, 4096, counts))
    assert [segment.document for segment in found] == np.linspace(0, 49, 8).round().astype(int).tolist()
    assert (corpus.counts.documents, counts.documents) == (0, 8)


def test_tokens_are_estimated_from_the_index(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    corpus = opened(write_jsonl(tmp_path / "a.jsonl", text_rows(50)), tokenizer, val_fraction=0.0)
    n_tokens = sum(len(segment) for segment in all_pieces(corpus, length=4096))
    assert corpus.expected_tokens("train", 4096).sum() == pytest.approx(n_tokens)
    assert [corpus.first_documents("train", n, 4096) for n in (1, 10**9)] == [1, 50]
    n = corpus.first_documents("train", n_tokens // 2, 4096)
    assert sum(len(segment) for segment in corpus.segments("train", 0, n, 4096)) == pytest.approx(n_tokens / 2, rel=0.1)


def test_estimates_count_truncated_documents_up_to_the_cut(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", text_rows(50))
    corpus = opened(path, tokenizer, val_fraction=0.0, long_documents="truncate")
    n_tokens = sum(len(segment) for segment in all_pieces(corpus, length=16))
    assert n_tokens == 50 * 16 == corpus.expected_tokens("train", 16).sum()
    plan = corpus.plan(16, part_rows=256)
    assert [corpus.expected_rows(plan.part(i), 16) for i in range(plan.n_parts)] == pytest.approx([267] * 3, abs=16)
    assert corpus.first_documents("train", 160, 16) == pytest.approx(10, abs=1)


def test_masked_segments_of_split_conversations_are_counted_for_plans(chat: LoadedTokenizer, tmp_path: Path) -> None:
    corpus = opened(write_jsonl(tmp_path / "a.jsonl", chat_rows(20)), chat, val_fraction=0.0)
    counts = DocumentCounts()
    segments = list(corpus.sample_segments("train", 20, 16, counts))
    assert counts.masked_tokens > 100 and counts.tokens == sum(map(len, segments))


@pytest.mark.parametrize("named", ["corpus", "{folder}/corpus", "corpus/*.jsonl", "{folder}/corpus/*.jsonl", "."])
def test_the_source_has_no_local_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    write_jsonl(tmp_path / "corpus" / "a.jsonl", text_rows(4))
    monkeypatch.chdir(tmp_path / "corpus" if named == "." else tmp_path)
    tokenizer = load_tokenizer(str(small_tokenizer(tmp_path / "tokenizer")))
    corpus = open_corpus(DataSettings(path=named.format(folder=tmp_path)), tokenizer)
    assert corpus.source == ("*.jsonl" if "*" in named else "corpus")


def test_a_chat_template_for_plain_text_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus.jsonl", text_rows(4))
    (tmp_path / "chat.jinja").write_text(CHATML)
    template = str(tmp_path / "chat.jinja")
    tokenizer = load_tokenizer(str(small_tokenizer(tmp_path / "tokenizer")), chat_template=template)
    with pytest.raises(ConfigError, match=r"data\.chat_template is .*chat\.jinja"):
        open_corpus(DataSettings(path=str(tmp_path / "corpus.jsonl"), chat_template=template), tokenizer)
