"""Duplicates are counted for the plan: never too few, by text where tokens spell it, by tokens elsewhere."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from kdpipe.pipeline.documents.document_duplicates import count_duplicates, n_repeated, text_key
from kdpipe.pipeline.documents.open_corpus import open_corpus
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, load_tokenizer
from kdpipe.schemas.cache_plan import CachePlan
from kdpipe.schemas.capture_settings import DataSettings
from support.corpora import CHATML, END, PICKY, TEXTS, chat_rows, pair_rows, small_tokenizer, with_system, write_jsonl

ACUTE = "\N{COMBINING ACUTE ACCENT}"


def changed(folder: Path, **changes: Any) -> LoadedTokenizer:
    """The small tokenizer with some keys of tokenizer.json changed."""
    small_tokenizer(folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return load_tokenizer(str(folder))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedTokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    split = {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "plain": load_tokenizer(str(small_tokenizer(folder / "plain"))),
        "nfc": changed(folder / "nfc", normalizer={"type": "NFC"}),
        "split": changed(folder / "split", pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]}),
    }


def planned(path: Path, tokenizer: LoadedTokenizer, **settings: Any) -> CachePlan:
    return open_corpus(DataSettings(path=str(path), **settings), tokenizer).plan(64)


def counts(plan: CachePlan) -> dict[str, int | None]:
    return {split.name: split.duplicates for split in plan.splits}


PARTS = st.sampled_from(["a", "b", "e", "é", ACUTE, " ", "\n", "日", END, "<|im_end|>"])


@pytest.mark.parametrize("name", ["plain", "nfc", "split"])
@pytest.mark.parametrize("append_stop", [False, True])
@hypothesis.given(texts=st.lists(st.lists(PARTS, min_size=1, max_size=3).map("".join), min_size=1, max_size=30))
@hypothesis.settings(
    max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_texts_of_equal_tokens_have_equal_keys(
    name: str, append_stop: bool, texts: list[str], tokenizers: dict[str, LoadedTokenizer]
) -> None:
    tokenizer = tokenizers[name]
    key = text_key(tokenizer, append_stop)
    assert key is not None
    by_tokens: dict[tuple[int, ...], set[int]] = {}
    for text, encoding in zip(texts, tokenizer.encode(texts, True), strict=True):
        ids = tuple(encoding.ids)
        ended = ids if not append_stop or ids[-1:] == (tokenizer.stop,) else (*ids, tokenizer.stop)
        by_tokens.setdefault(ended, set()).add(key(text))  # type: ignore[arg-type]
    assert all(len(keys) == 1 for keys in by_tokens.values())
    assert len(set.union(*by_tokens.values())) == len(by_tokens)


def test_repeats_are_counted_by_split() -> None:
    found = count_duplicates([5, 5, 5, 7, 8, 7], np.array([False, False, True, False, True, False]))
    assert found == {"train": 2, "validation": 0}


def test_the_plan_counts_the_texts_that_the_data_repeat(tmp_path: Path, tokenizers: dict[str, LoadedTokenizer]) -> None:
    texts = [*TEXTS[:12], *TEXTS[:5], TEXTS[0], TEXTS[1] + END]
    path = write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in texts])
    assert counts(planned(path, tokenizers["plain"], val_fraction=0.0)) == {"train": 7}
    assert counts(planned(path, tokenizers["plain"], val_fraction=0.0, append_stop=False)) == {"train": 6}
    found = counts(planned(path, tokenizers["plain"], val_fraction=0.3))
    assert found.keys() == {"train", "validation"} and sum(filter(None, found.values())) in (6, 7)
    val_path = write_jsonl(tmp_path / "held_out.jsonl", [{"text": TEXTS[0]}, {"text": TEXTS[0]}, {"text": TEXTS[3]}])
    found = counts(planned(path, tokenizers["plain"], val_path=str(val_path)))
    assert found == {"train": 7, "validation": 1}


def test_texts_that_are_equal_once_normalized_are_duplicates(
    tmp_path: Path, tokenizers: dict[str, LoadedTokenizer]
) -> None:
    path = write_jsonl(
        tmp_path / "corpus.jsonl", [{"text": "caf\N{LATIN SMALL LETTER E WITH ACUTE}"}, {"text": f"cafe{ACUTE}"}]
    )
    assert counts(planned(path, tokenizers["nfc"], val_fraction=0.0)) == {"train": 1}
    assert counts(planned(path, tokenizers["plain"], val_fraction=0.0)) == {"train": 0}


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"model": {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1, END: 2}, "unk_token": "<unk>"}},
    ],
    ids=["normalizer", "prefix space", "white space", "words"],
)
def test_lossy_tokenizers_leave_the_count_unknown(changes: dict[str, Any], tmp_path: Path) -> None:
    assert text_key(changed(tmp_path / "tokenizer", **changes), True) is None


def test_an_incomplete_alphabet_or_tokens_that_strip_white_space_leave_it_unknown(tmp_path: Path) -> None:
    small_tokenizer(tmp_path / "a")
    described = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    added = [described["added_tokens"][0] | {"lstrip": True}, *described["added_tokens"][1:]]
    assert text_key(changed(tmp_path / "b", added_tokens=added), True) is None
    model = described["model"]
    last = max(model["vocab"].values())
    vocab = {("\N{SNOWMAN}" if token == "ß" else token): number for token, number in model["vocab"].items()}
    assert len(vocab) == last + 1
    merges = [pair for pair in model["merges"] if "ß" not in "".join(pair)]
    assert text_key(changed(tmp_path / "c", model={**model, "vocab": vocab, "merges": merges}), True) is None


def test_duplicates_of_conversations_are_counted_by_tokens(
    tmp_path: Path, tokenizers: dict[str, LoadedTokenizer]
) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [*pair_rows(), *pair_rows(3)])
    assert counts(planned(pairs, tokenizers["plain"], val_fraction=0.0)) == {"train": 3}
    chat = load_tokenizer(str(small_tokenizer(tmp_path / "chat", chat_template=CHATML)))
    talks = write_jsonl(tmp_path / "talks.jsonl", [*chat_rows(), *chat_rows(2)])
    assert counts(planned(talks, chat, val_fraction=0.0)) == {"train": 2}


def test_untrainable_conversations_are_not_counted_as_duplicates(tmp_path: Path) -> None:
    picky = load_tokenizer(str(small_tokenizer(tmp_path / "chat", chat_template=PICKY)))
    refused = with_system(chat_rows(1)[0])
    talks = write_jsonl(tmp_path / "talks.jsonl", [*chat_rows(4), refused, refused, *chat_rows(1)])
    for untrainable in ("refuse", "skip"):  # refused where they are met, not while they are counted
        settings = DataSettings.model_validate({"path": str(talks), "val_fraction": 0.0, "untrainable": untrainable})
        assert counts(open_corpus(settings, picky).plan(64, tokens_per_byte=0.5)) == {"train": 1}


def test_a_count_by_tokens_is_that_of_verification() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        keys = rng.integers(0, 9, (rng.integers(1, 20), 2))
        segments = [piece_of(n, key) for n, pair in enumerate(keys.tolist()) for key in pair]
        assert n_repeated(segments) == len(keys) - len({tuple(sorted(pair)) for pair in keys.tolist()})
    assert n_repeated([]) == 0


def piece_of(document: int, key: int) -> Segment:
    """A piece whose digest follows from a key."""
    return Segment(
        split="train",
        document=document,
        offset=0,
        tokens=np.zeros(1, np.int32),
        loss_mask=np.zeros(1, np.bool_),
        token_bytes=np.zeros(1, np.uint32),
        digest=sha256(bytes([key])).digest()[:16],
    )
