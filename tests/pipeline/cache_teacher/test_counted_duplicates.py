"""Duplicates are counted for every kind of data and tokenizer: honest caches pass, a copied part is named."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kdpipe.cache.opening import open_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.pipeline.documents import corpus
from support.corpora import CHATML, TEXTS, chat_rows, pair_rows, small_tokenizer, write_jsonl
from support.damage import copy_part
from support.stage_one import run, settings_for
from support.tiny import unsynced

pytestmark = pytest.mark.slow


def word_piece(folder: Path) -> Path:
    """A tokenizer that loses case, white space and unknown words."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[SEP]").save_pretrained(folder)
    return folder


def sentence_piece(folder: Path) -> Path:
    """A tokenizer of marked spaces and likely pieces, which loses what NFKC folds."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(
            vocab_size=400, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
        ),
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    return folder


def chat(folder: Path) -> Path:
    """A byte-level tokenizer with a template."""
    return small_tokenizer(folder, chat_template=CHATML)


def talks() -> list[dict[str, Any]]:
    """Conversations: two again, one with what the template drops, and two whose long prompts differ where nothing is
    kept of them."""
    rows = chat_rows(24)
    dropped = {"messages": [{**turn, "mood": "good"} for turn in rows[3]["messages"]]}
    long = [
        {
            "messages": [
                {"role": "user", "content": f"{i} {'word ' * 200}"},
                {"role": "assistant", "content": "The same."},
            ]
        }
        for i in (1, 2)
    ]
    return [*rows, rows[0], rows[1], dropped, *long]


TWICE = [{"text": text} for text in [*TEXTS[:24], *TEXTS[:2]]]
KINDS: dict[str, tuple[Any, list[dict[str, Any]], int]] = {
    "chat": (chat, talks(), 4),
    "pairs": (small_tokenizer, [*pair_rows(24), *pair_rows(2)], 2),
    "WordPiece": (word_piece, [*TWICE, {"text": TEXTS[2].upper()}, {"text": f"  {TEXTS[3]}"}], 4),
    "SentencePiece": (sentence_piece, [*TWICE, {"text": TEXTS[4].replace(" ", "\N{NO-BREAK SPACE}")}], 3),
}


def made(folder: Path, kind: str) -> Path:
    """A cache of tokens of a kind of data, in small parts."""
    tokenizer, rows, _ = KINDS[kind]
    tokenizer(folder / "tokenizer")
    write_jsonl(folder / "corpus.jsonl", rows)
    settings = settings_for(
        folder,
        targets={"kind": "none"},
        sequences={"part_rows": 512},
        data={"val_fraction": 0},
        teacher={"name": None, "tokenizer": str(folder / "tokenizer")},
    )
    with unsynced():
        run(settings)
    return folder / "cache"


def repeated_in(path: Path) -> int:
    """How many documents have the tokens of an earlier one, by the pieces that a cache holds."""
    cache, segments = open_cache(path), dict[int, list[tuple[int, ...]]]()
    for rows in cache:
        ends = [*rows.document_starts[1:].tolist(), len(rows)]
        for number, start, end in zip(rows.documents.tolist(), rows.document_starts.tolist(), ends, strict=True):
            segments.setdefault(number, []).append(tuple(rows.tokens[start:end].tolist()))
    return len(segments) - len({tuple(sorted(each)) for each in segments.values()})


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_counts_what_the_cache_holds_and_a_copied_part_is_named(kind: str, tmp_path: Path) -> None:
    path = made(tmp_path, kind)
    plan = open_cache(path).manifest.plan
    assert plan.splits[0].duplicates == repeated_in(path) == KINDS[kind][2]
    report = verify_cache(path, "deep")
    assert report.ok and f"({KINDS[kind][2]} in the data)" in report.notes[0].what
    pairs = [(a, b) for b in range(plan.n_parts) for a in range(b)]
    source, target = next((a, b) for a, b in pairs if plan.part(a).n_documents <= plan.part(b).n_documents)
    copy_part(path, source, target)
    assert verify_cache(path, "full").ok
    (problem,) = verify_cache(path, "deep").problems
    assert f"{KINDS[kind][2]} in the data" in problem.what and f" of part {target}" in problem.what


def test_of_data_that_take_too_long_to_tokenize_the_count_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "MAX_TOKENIZED_BYTES", 4096)
    path = made(tmp_path, "chat")
    assert open_cache(path).manifest.plan.splits[0].duplicates is None
    report = verify_cache(path, "deep")
    assert report.ok and "number in the data unknown" in report.notes[0].what
