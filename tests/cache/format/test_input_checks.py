"""Sequences and targets that a teacher's code got wrong: each is refused when it is added, in words that name it.

The part is then given up as a whole: nothing of it stays, and the right sequences make the same cache afterwards.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.cache import layout
from kdpipe.cache.format.rows import Block, Sequence
from kdpipe.cache.parts import text
from kdpipe.schemas.errors import CacheWriteError
from support.synthetic import Recipe
from support.tiny import SMALL, begin_cache, make_cache, part_of, parts_in, resume_cache

Pair = tuple[Sequence, Block]
RECIPES: Mapping[str, Recipe] = {
    "threshold": SMALL,
    "sampled": replace(SMALL, kind="sampled", draws=8, draw_values=True, text=False),
    "sampled at 2": replace(SMALL, kind="sampled", draws=8, target_temperature=2.0, text=False),
    "bounded": replace(SMALL, kind="topk", top_k=8, boundary=True),
    "topk": replace(SMALL, kind="topk", top_k=8, hidden=False),
    "state": replace(SMALL, kind="state", state_width=12, hidden=False),
    "none": replace(SMALL, kind="none", hidden=False),
}


def put(array: Any, place: Any, value: Any) -> Any:
    """A copy of an array with something else at a place."""
    copy = np.array(array)
    copy[place] = value
    return copy


def of_sequence(**changes: Callable[[Any], Any]) -> Callable[[Pair], Pair]:
    """Fields of the sequence changed."""
    return lambda pair: (replace(pair[0], **{k: change(getattr(pair[0], k)) for k, change in changes.items()}), pair[1])


def of_block(**changes: Callable[[Any], Any]) -> Callable[[Pair], Pair]:
    """Fields of the block changed."""
    return lambda pair: (pair[0], replace(pair[1], **{k: change(getattr(pair[1], k)) for k, change in changes.items()}))


def with_column(name: str, value: object) -> Callable[[Pair], Pair]:
    """The first document has another value in a source column."""
    return of_sequence(columns=lambda columns: {**columns, name: [value, *columns[name][1:]]})


def first_masked(pair: Pair) -> int:
    """The first row with loss_mask false."""
    return int(np.flatnonzero(~np.asarray(pair[0].loss_mask))[0])


def targets_at_a_masked_row(pair: Pair) -> Pair:
    block = pair[1]
    row = first_masked(pair)
    at = int((np.asarray(block.n_exact, np.int64) + block.n_draws)[:row].sum())
    ids, logprobs = np.insert(block.ids, at, 0), np.insert(block.logprobs, at, -1.0)
    return pair[0], replace(block, n_exact=put(block.n_exact, row, 1), ids=ids, logprobs=logprobs)


def without_exact(pair: Pair) -> Pair:
    """The exact ids of the first row become draws."""
    block = pair[1]
    n_exact, n_draws = put(block.n_exact, 0, 0), put(block.n_draws, 0, block.n_draws[0] + block.n_exact[0])
    return pair[0], replace(block, n_exact=n_exact, n_draws=n_draws)


def a_draw_twice(pair: Pair) -> Pair:
    """Two draws of a row have one id."""
    block = pair[1]
    row = int(np.flatnonzero(np.asarray(block.n_draws) > 1)[0])
    first = int((np.asarray(block.n_exact, np.int64) + block.n_draws)[:row].sum() + block.n_exact[row])
    return pair[0], replace(block, ids=put(block.ids, first + 1, block.ids[first]))


def draws_dropped(pair: Pair) -> Pair:
    """The draws of the first row are left out, its tail stays."""
    block, first = pair[1], int(pair[1].n_exact[0])
    gone = slice(first, first + int(block.n_draws[0]))
    ids, logprobs = np.delete(block.ids, gone), np.delete(block.logprobs, gone)
    return pair[0], replace(block, n_draws=put(block.n_draws, 0, 0), ids=ids, logprobs=logprobs)


def draws_in_topk(pair: Pair) -> Pair:
    """One exact id of every trained row becomes a draw."""
    block = pair[1]
    one = (np.asarray(block.n_exact) > 1).astype(block.n_exact.dtype)
    return pair[0], replace(block, n_exact=block.n_exact - one, n_draws=block.n_draws + one)


def empty_sequence(pair: Pair) -> Pair:
    none = pair[0].tokens[:0]
    return replace(pair[0], tokens=none, loss_mask=pair[0].loss_mask[:0], token_bytes=none), pair[1]


FAULTS: list[tuple[str, str, Callable[[Pair], Pair], str]] = [
    ("no tokens", "threshold", empty_sequence, r"a sequence has 0 tokens, 0 mask bits and 0 lengths"),
    ("short mask", "threshold", of_sequence(loss_mask=lambda m: m[:-1]), r"tokens, \d+ mask bits and \d+ lengths"),
    ("big token", "threshold", of_sequence(tokens=lambda t: put(t, 3, 300)), "outside the vocabulary of 300"),
    (
        "negative token",
        "none",
        of_sequence(tokens=lambda t: put(t.astype(int), 3, -1)),
        "tokens has a negative number: -1",
    ),
    ("starts at 1", "threshold", of_sequence(document_starts=lambda s: put(s, 0, 1)), "must ascend from 0"),
    ("mask at the end", "threshold", of_sequence(loss_mask=lambda m: put(m, -1, True)), "no next token exists"),
    ("missing digest", "threshold", of_sequence(digests=lambda d: d[:-1]), r"documents and \d+ digests"),
    ("missing number", "threshold", of_sequence(documents=lambda d: d[:-1]), r"\d+ document_starts, \d+ documents"),
    ("another part's", "threshold", of_sequence(documents=lambda d: d + 99), r"holds documents 0 to 3, a sequence has"),
    ("lost column", "threshold", of_sequence(columns=lambda c: {**c, "year": []}), "column year needs one value"),
    ("a word for a year", "threshold", with_column("year", "then"), "column year has 'then', expected int64"),
    ("a fraction for a year", "threshold", with_column("year", 1.5), "column year has 1.5, expected int64"),
    ("a year beyond 64 bits", "threshold", with_column("year", 1 << 63), "expected int64"),
    ("true for a year", "threshold", with_column("year", True), "column year has True, expected int64"),
    ("a number for a name", "threshold", with_column("category", 3), "column category has 3, expected string"),
    ("half a letter", "threshold", with_column("category", "\ud800"), "expected string"),
    ("one for true", "threshold", with_column("is_code", 1), "column is_code has 1, expected bool"),
    ("a word for a number", "threshold", with_column("quality", "good"), "expected float64"),
    (
        "half a letter of text",
        "threshold",
        of_sequence(texts=lambda t: ["\ud800", *t[1:]]),
        "cannot be written as UTF-8",
    ),
    ("no texts", "threshold", of_sequence(texts=lambda _: None), "texts must be given, one per document"),
    ("texts unasked", "sampled", of_sequence(texts=lambda _: ["a"] * 9), "exactly if the cache stores text"),
    ("lost pooled", "threshold", of_sequence(pooled=lambda _: {}), r"pooled needs \[\d+, 8\] numbers for layer 2"),
    ("lost ids", "threshold", of_block(ids=lambda i: i[:-1]), r"counts of \d+ rows add up to \d+, there are \d+ ids"),
    ("masked row", "threshold", targets_at_a_masked_row, "a row with loss_mask false has targets"),
    ("entries in none", "none", targets_at_a_masked_row, "a row with loss_mask false has targets"),
    ("no exact id", "threshold", without_exact, "expected 1 to 16, the most probable one exact"),
    ("big id", "threshold", of_block(ids=lambda i: put(i, 0, 300)), "a target id is outside the vocabulary of 300"),
    ("draws in top-k", "topk", draws_in_topk, "targets of kind topk have no draws"),
    ("p above 1", "threshold", of_block(logprobs=lambda p: put(p, 0, 0.5)), "exact id is NaN or above 0"),
    ("p is NaN", "threshold", of_block(logprobs=lambda p: put(p, 0, np.nan)), "exact id is NaN or above 0"),
    ("no times", "sampled", of_block(times=lambda _: None), "need `times`, at least 1, for every draw"),
    ("zero times", "sampled", of_block(times=lambda t: put(t, 0, 0)), "need `times`, at least 1"),
    ("no draw values", "sampled", of_block(logprobs=lambda p: put(p, slice(None), np.nan)), "log p of an? "),
    ("lost tail", "threshold", of_block(log_tail=lambda _: None), "log_tail must have one value per row"),
    (
        "shifted tail",
        "threshold",
        of_block(log_tail=lambda t: put(t, 0, -0.01)),
        "exact mass and tail of row 0 do not sum to 1: .* expected -4.6.* from log_tail",
    ),
    ("too many times", "sampled", of_block(times=lambda t: put(t, 0, t[0] + 1)), "row 0 add up to 9 times, expected 8"),
    (
        "log p above 0",
        "bounded",
        of_block(boundary_logprob=lambda b: put(b, 0, 3.0)),
        "row 0 of its block: boundary_logprob is above 0",
    ),
    ("tail undrawn", "threshold", draws_dropped, "a row has a tail, but no draws"),
    (
        "shifted tail at 2",
        "sampled at 2",
        of_block(drawn_log_tail=lambda t: put(t, slice(None), -0.001)),
        "of row 0 do not sum to 1: .* -6.9.* from drawn_log_tail at temperature 2.0",
    ),
    (
        "log_z of NaN",
        "sampled at 2",
        of_block(log_z=lambda z: {t: v * np.nan for t, v in z.items()}),
        "do not sum to 1",
    ),
    ("lost entropy", "threshold", of_block(entropy=lambda e: e[:-1]), "entropy must have one value per row"),
    (
        "entropy 1e9",
        "threshold",
        of_block(entropy=lambda e: put(e, 0, 1e9)),
        "row 0 of its block: entropy is outside 0 to log V",
    ),
    ("no log_z", "topk", of_block(log_z=lambda z: {2.0: z[2.0]}), "log_z@4.* must have one value per row"),
    ("twice", "threshold", a_draw_twice, r"duplicate id in the targets of row \d+"),
    ("lost hidden", "threshold", of_block(hidden=lambda _: {}), r"hidden needs \[\d+, 8\] numbers for layer 4"),
    (
        "hidden NaN",
        "threshold",
        of_block(hidden=lambda h: {4: put(h[4], 0, np.nan)}),
        "hidden of layer 4 has non-finite numbers",
    ),
    ("lost state", "state", of_block(state=lambda _: None), r"state needs \[\d+, 12\] numbers"),
    ("state inf", "state", of_block(state=lambda s: put(s, 0, np.inf)), "state has non-finite numbers"),
]


@pytest.mark.parametrize(("kind", "fault", "message"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_wrong_input_is_refused_in_words(
    tmp_path: Path, kind: str, fault: Callable[[Pair], Pair], message: str
) -> None:
    path, recipe = tmp_path / "cache", RECIPES[kind]
    writer = begin_cache(path, recipe)
    with pytest.raises(CacheWriteError, match=message), writer.part(0) as part:
        part.add(*fault(part_of(recipe, 0)[0]))
    assert list(parts_in(path)) == []
    assert list((path / layout.WORK).iterdir()) == []


def test_after_a_refusal_the_right_sequences_make_the_same_cache(tmp_path: Path) -> None:
    writer = begin_cache(tmp_path / "cache")
    pair = part_of(SMALL, 0)[0]
    with pytest.raises(CacheWriteError), writer.part(0) as part:
        part.add(*of_block(log_tail=lambda _: None)(pair))
    assert resume_cache(tmp_path / "cache") == make_cache(tmp_path / "other")


def test_a_text_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_FRAME_BYTES", 1000)
    monkeypatch.setattr(text, "FRAME_BYTES", 500)
    writer = begin_cache(tmp_path / "cache")
    sequence, block = part_of(SMALL, 0)[0]
    long = ["a" * 1001, *(sequence.texts or [])[1:]]
    message = "text has 1,001 bytes, at most 500 can be kept"
    with pytest.raises(CacheWriteError, match=message) as caught, writer.part(0) as part:
        part.add(replace(sequence, texts=long), block)
    assert caught.value.hint == "split the document, or cache without its text"


def test_a_part_that_grows_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdpipe.cache.parts.part_writer.MAX_PART_ROWS", 100)
    writer = begin_cache(tmp_path / "cache")
    with pytest.raises(CacheWriteError, match="part 0 would pass 100 rows") as caught, writer.part(0) as part:
        for pair in part_of(SMALL, 0):
            part.add(*pair)
    assert caught.value.hint == "plan fewer documents a part"
