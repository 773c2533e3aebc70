"""Long texts cut into ranges: evenly spread, lossless, of the given share; other corpora stay whole."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.pipeline.documents.corpus import Corpus
from kdpipe.pipeline.documents.open_corpus import open_corpus
from kdpipe.pipeline.documents.text_ranges import LONG_BYTES, MAX_RANGES, MIN_RANGE_BYTES, ranges_of, ranges_to_hold_out
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, load_tokenizer
from kdpipe.schemas.capture_settings import DataSettings
from support.corpora import CHATML, TEXTS, small_tokenizer, write_jsonl

BOOK = "\n\n".join(TEXTS)
# Of 50 documents of a number and a thousand lines, by the version that cut no text.
UNCUT = "b158c2d1c55dcb33a0f00c1a98f9269e0c0a81d108c27a6b50c5930acf768ba2"
LINE = "a line of some length\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> LoadedTokenizer:
    return load_tokenizer(str(small_tokenizer(tmp_path_factory.mktemp("tokenizer"), chat_template=CHATML)))


def opened(folder: Path, tokenizer: LoadedTokenizer, rows: list[dict[str, Any]], **settings: Any) -> Corpus:
    path = write_jsonl(folder / "corpus.jsonl", rows)
    return open_corpus(DataSettings(path=str(path), **settings), tokenizer)


def texts_of(corpus: Corpus) -> dict[str, list[str]]:
    """The text of every document of each split."""
    return {
        split: ["".join(segment.text for segment in corpus.segments(split, i, 1, 64)) for i in range(n)]
        for split, n in corpus.splits.items()
    }


@given(
    st.text(st.sampled_from("ab \n\u00e9\u4e00\U0001f600"), min_size=1, max_size=400),
    st.integers(1, MAX_RANGES),
    st.floats(1e-6, 0.999),
)
def test_ranges_concatenate_to_the_text_and_are_not_empty(text: str, n: int, share: float) -> None:
    found = ranges_of(text, n, share)
    assert "".join(text[each.start : each.end] for each in found) == text
    assert found[0].start == 0 and found[-1].end == len(text)
    assert all(one.end == other.start for one, other in pairwise(found))
    assert all(each.start < each.end for each in found)
    assert sum(each.held_out for each in found) <= n


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("text", [BOOK, "word " * 40_000, "\u4e00" * 60_000], ids=["paragraphs", "words", "no seams"])
def test_the_share_is_held_out_within_a_range_and_evenly_spread(text: str, share: float) -> None:
    (n,) = ranges_to_hold_out(np.array([len(text.encode())], np.uint32), share).tolist()
    found = ranges_of(text, n, share)
    held = [each for each in found if each.held_out]
    assert len(held) == n == min(MAX_RANGES, int(share * len(text.encode()) // MIN_RANGE_BYTES))
    length = sum(each.end - each.start for each in held)
    assert abs(length - share * len(text)) <= max(each.end - each.start for each in held)
    for i, each in enumerate(held):
        assert i * len(text) / n <= each.start < each.end <= (i + 1) * len(text) / n


def test_a_text_is_cut_after_a_nearby_paragraph_line_or_word() -> None:
    for seam in ("\n\n", "\n", " "):
        text = ("x" * 99 + seam) * 1000
        assert all(text[: each.end].endswith(seam) for each in ranges_of(text, 4, 0.1))


def test_documents_have_the_ranges_that_their_share_fills_and_the_longest_others_make_it_up() -> None:
    def ranges(*sizes: int, share: float = 0.02) -> list[int]:
        return ranges_to_hold_out(np.array(sizes, np.uint32), share).tolist()

    assert ranges(51_200, 102_400, 2_000_000) == [1, 2, MAX_RANGES]
    assert ranges(LONG_BYTES) == [1], "rather than none"
    assert ranges(LONG_BYTES - 1, 5) == [0, 0]
    assert ranges(*range(30_000, 40_000, 1000)) == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1], "2 % of 345,000 bytes are 6 ranges"
    assert ranges(50_000, 40_000, 120_000, 20_000) == [1, 1, 2, 0]
    assert ranges(20_000, 30_000, 30_000) == [0, 1, 1], "documents of one length may be equal"


@given(st.lists(st.integers(0, 300_000), min_size=1, max_size=30, unique=True), st.floats(0.001, 0.3))
def test_of_all_long_documents_the_share_is_held_out_within_a_range(sizes: list[int], share: float) -> None:
    n = ranges_to_hold_out(np.array(sizes, np.uint32), share)
    shares = [(share * size, k) for size, k in zip(sizes, n.tolist(), strict=True) if k or size >= LONG_BYTES]
    wanted = sum(each for each, _ in shares)
    held_out = sum(max(each, MIN_RANGE_BYTES) for each, k in shares if k)
    assert abs(held_out - wanted) <= MIN_RANGE_BYTES
    assert all(
        k == min(each // MIN_RANGE_BYTES, MAX_RANGES) or (k == 1 and each < MIN_RANGE_BYTES) for each, k in shares
    )


@pytest.mark.parametrize("as_file", [True, False])
def test_one_long_document_has_both_splits_and_no_character_is_lost(
    as_file: bool, tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    if as_file:
        (tmp_path / "book.txt").write_text(BOOK, encoding="utf-8")
        corpus = open_corpus(DataSettings(path=str(tmp_path / "book.txt")), tokenizer)
    else:
        corpus = opened(tmp_path, tokenizer, [{"text": BOOK, "category": "book"}])
    assert corpus.splits == {"train": 3, "validation": 2}
    assert corpus.source.endswith(" (1 document in 5 ranges)")
    found = texts_of(corpus)
    joined = [found["train"][0], found["validation"][0], found["train"][1], found["validation"][1], found["train"][2]]
    assert "".join(joined) == BOOK
    assert len("".join(found["validation"])) / len(BOOK) == pytest.approx(0.02, abs=0.002)
    if not as_file:
        segments = list(corpus.segments("validation", 0, 2, 64))
        assert {segment.columns["category"] for segment in segments} == {"book"}


def test_a_stop_token_ends_the_text_and_no_range_before(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    corpus = opened(tmp_path, tokenizer, [{"text": BOOK}])
    last = {
        (split, i): list(corpus.segments(split, i, 1, 1 << 16))[-1].tokens[-1] == tokenizer.stop
        for split, n in corpus.splits.items()
        for i in range(n)
    }
    assert [where for where, is_stop in last.items() if is_stop] == [("train", 2)]


def test_equal_documents_are_cut_alike_and_their_duplicates_counted(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    corpus = opened(tmp_path, tokenizer, [{"text": BOOK}, {"text": BOOK}])
    found = texts_of(corpus)
    assert {split: len(set(texts)) for split, texts in found.items()} == {"train": 3, "validation": 2}
    assert not set(found["train"]) & set(found["validation"])
    assert {split.name: split.duplicates for split in corpus.plan(64).splits} == {"train": 3, "validation": 2}


def test_short_documents_with_a_long_one_stay_whole_and_a_limit_counts_documents(
    tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    rows = [{"text": TEXTS[0]}, {"text": BOOK}, {"text": TEXTS[1]}, {"text": TEXTS[2]}]
    corpus = opened(tmp_path, tokenizer, rows, limit=3)
    found = texts_of(corpus)
    assert corpus.n_cut_rows == 1 and corpus.n_rows == 3
    assert set(TEXTS[:2]) <= {*found["train"], *found["validation"]} and TEXTS[2] not in found["train"]


def test_the_fingerprint_depends_on_the_share_and_the_text(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    books = [(BOOK, 0.02), (BOOK, 0.03), (BOOK[:-1], 0.02), (BOOK, 0)]
    prints = [opened(tmp_path, tokenizer, [{"text": text}], val_fraction=share).fingerprint for text, share in books]
    assert len(set(prints)) == len(books)
    assert opened(tmp_path, tokenizer, [{"text": BOOK}]).fingerprint == prints[0]


def test_nothing_is_cut_if_the_share_is_a_document(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    rows = [{"text": f"{n:02} {LINE * 1000}"} for n in range(50)]
    corpus = opened(tmp_path, tokenizer, rows)
    assert (corpus.n_cut_rows, sum(corpus.splits.values())) == (0, 50)
    assert corpus.fingerprint == UNCUT
    assert opened(tmp_path, tokenizer, rows[:49]).n_cut_rows == 49


@pytest.mark.parametrize("form", ["chat", "pair", "own"])
def test_conversations_and_data_with_validation_data_are_not_cut(
    form: str, tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": BOOK}]
    rows = {"chat": {"messages": turns}, "pair": {"prompt": "Go on.", "response": BOOK}, "own": {"text": BOOK}}
    own = {"val_path": str(write_jsonl(tmp_path / "own.jsonl", [{"text": TEXTS[0]}]))} if form == "own" else {}
    corpus = opened(tmp_path, tokenizer, [rows[form]], **own)
    assert (corpus.n_cut_rows, corpus.splits["train"]) == (0, 1)
