"""Numbers that were made to do harm, all checksums right: rows that break the rules are refused, or named by verify."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.schemas.arrays import MINUS_INFINITY, MISSING
from support.damage import fresh_cache, recode
from support.limits import assert_named, assert_refused, judged

Codes = Any


@dataclass(frozen=True, slots=True)
class Part:
    """What the edits must know of the first part: which rows are trained, and where the entries of each begin."""

    loss_mask: Codes
    n_exact: Codes
    count: Codes

    @classmethod
    def of(cls, cache: Path) -> "Part":
        """Of an undamaged cache."""
        part = open_cache(cache).part(0)
        rows = part.rows(0, len(part.sequences))
        return cls(rows.loss_mask, rows.n_exact.astype(np.int64), rows.count.astype(np.int64))

    @property
    def trained(self) -> int:
        """A row with loss_mask true and at least two exact ids, where rows have any."""
        return int(np.flatnonzero(self.loss_mask & ((self.n_exact >= 2) | (self.n_exact.max() == 0)))[0])

    @property
    def masked(self) -> int:
        """A row with loss_mask false."""
        return int(np.flatnonzero(~self.loss_mask)[0])

    @property
    def entry(self) -> int:
        """Where the entries of the trained row begin."""
        return int(self.count[: self.trained].sum())

    @property
    def zero(self) -> int:
        """The first of all."""
        return 0

    @property
    def value(self) -> int:
        """Where the exact values of the trained row begin."""
        return int(self.n_exact[: self.trained].sum())


Edit = Callable[[Part, Codes], None]


def put(where: str, value: int, offset: int = 0) -> Edit:
    """One code at a place of the part."""

    def edit(part: Part, codes: Codes) -> None:
        codes[getattr(part, where) + offset] = value

    return edit


def add(where: str, value: int, offset: int = 0) -> Edit:
    """One code more or less."""

    def edit(part: Part, codes: Codes) -> None:
        place = getattr(part, where) + offset
        codes[place] = (int(codes[place]) + value) % (1 << 32)

    return edit


def put_another_label(part: Part, codes: Codes) -> None:
    """A log p of 0 for the first next token that has one of its own."""
    codes[np.flatnonzero(codes < MISSING)[0]] = 0


def second_id_as_the_first(part: Part, codes: Codes) -> None:
    """An id twice in a row."""
    codes[part.entry + 1] = codes[part.entry]


def one_more_and_one_less(part: Part, codes: Codes) -> None:
    """Counts that add up, with a draw where none may be."""
    with_draws = np.flatnonzero(codes)
    codes[with_draws[np.abs(with_draws - part.masked).argmin()]] -= 1
    codes[part.masked] = 1


def bytes_at(*values: int) -> Edit:
    """The last bytes of the first coded vector: its scale."""

    def edit(part: Part, codes: Codes) -> None:
        codes[0, -4:] = values

    return edit


REFUSED: dict[str, tuple[str, str, str, Edit, str]] = {
    "a token beyond the vocabulary": ("threshold", "row", "token", put("trained", 300), "outside the vocabulary"),
    "a token beyond all": ("threshold", "row", "token", put("trained", (1 << 32) - 1), "outside the vocabulary"),
    "an id beyond the vocabulary": ("threshold", "id", "", put("entry", 300), "outside the vocabulary"),
    "an id beyond all": ("topk", "id", "", put("entry", 1 << 31), "outside the vocabulary"),
    "a mask of 2": ("threshold", "row", "loss_mask", put("trained", 2), "something else than 0 and 1"),
    "a mask against its entries": (
        "threshold",
        "row",
        "loss_mask",
        put("trained", 0),
        "a row with loss_mask false has targets",
    ),
    "an entry more": ("threshold", "row", "n_exact", add("trained", 1), "do not agree"),
    "an entry less": ("topk", "row", "n_exact", add("trained", -1), "do not agree"),
    "a draw beyond all": ("threshold", "row", "n_draws", put("trained", 1 << 31), "above the 16 ids"),
    "entries where none may be": (
        "threshold",
        "row",
        "n_draws",
        one_more_and_one_less,
        "a row with loss_mask false has",
    ),
    "a log p beyond its quantizer": ("threshold", "logprob", "", put("value", 1 << 20), "out of range"),
    "a log p of minus infinity": ("topk", "logprob", "", put("value", MINUS_INFINITY), "out of range"),
    "a log p that is no number": ("topk", "logprob", "", put("value", MISSING), ""),
    "a small mass": ("topk", "logprob", "", add("value", 100), "do not sum to 1"),
    "a tail beyond its quantizer": ("threshold", "row", "log_tail", put("trained", 1 << 16), "out of range"),
    "a label of its own beside the exact id": ("threshold", "row", "label_logprob", put("trained", 0), "stored twice"),
    "a tail of everything": ("threshold", "row", "log_tail", put("trained", 40_000), "do not sum to 1"),
    "a tail that is no number": ("threshold", "row", "log_tail", put("trained", MISSING), "do not sum to 1"),
    "an entropy beyond its quantizer": ("state", "row", "entropy", put("trained", 1 << 31), "out of range"),
    "a number of times beyond all": ("sampled", "times", "", put("zero", (1 << 32) - 1), "drawn more often than"),
    "times that add up to nothing": (
        "sampled",
        "times",
        "",
        lambda part, codes: codes.fill((1 << 32) - 1),
        "drawn more often than",
    ),
    "a scale that is no number": ("threshold", "hidden", "", bytes_at(0, 0, 0xC0, 0x7F), "the scale of a vector"),
    "a scale without end": ("threshold", "hidden", "", bytes_at(0, 0, 0x80, 0x7F), "the scale of a vector"),
    "a scale below zero": ("state", "state", "", bytes_at(0, 0, 0x80, 0xBF), "the scale of a vector"),
    "a huge scale": ("state", "state", "", bytes_at(0xFF, 0xFF, 0x7F, 0x7F), "the scale of a vector"),
}

NAMED: dict[str, tuple[str, str, str, Edit, str]] = {
    "an id twice": ("threshold", "id", "", second_id_as_the_first, "duplicate id"),
    "an id twice among all": ("topk", "id", "", second_id_as_the_first, "duplicate id"),
    "a missing entropy": ("threshold", "row", "entropy", put("trained", MISSING), "entropy is a number where"),
    "an entropy too many": ("threshold", "row", "entropy", put("masked", 5), "entropy is a number where"),
    "an entropy above log V": ("threshold", "row", "entropy", put("trained", 7000), "entropy is outside 0 to log V"),
    "log_z above its bound": ("threshold", "row", "log_z@2.0", put("trained", 6000), "log_z at 2.0 is outside"),
    "log_z below its ids": ("topk", "row", "log_z@4.0", put("trained", 0), "below the sum over its exact ids"),
    "a missing log_z": ("state", "row", "log_z@4.0", put("trained", MISSING), "log_z@4.0 is a number where"),
    "a missing label": ("state", "row", "label_logprob", put("trained", MISSING), "label_logprob is a number where"),
    "a label above the best": ("threshold", "row", "label_logprob", put_another_label, "more probable than the most"),
    "a missing boundary": ("threshold", "row", "boundary_logprob", put("trained", MISSING), "boundary_logprob is a"),
    "a row without its best id": ("state", "row", "loss_mask", put("masked", 1), "loss_mask"),
    "a token of a megabyte": ("topk", "row", "token_bytes", put("trained", 1 << 20), "a token is longer than"),
    "a token of minus one byte": ("state", "row", "token_bytes", put("trained", (1 << 32) - 1), "a token is longer"),
    "one time more": ("sampled", "times", "", add("zero", 1), "do not add up to 8"),
}


def edited(tmp_path: Path, case: tuple[str, str, str, Edit, str]) -> Path:
    """A cache with other numbers in its first part."""
    kind, array, column, edit, _ = case
    cache = fresh_cache(tmp_path / "cache", kind)
    part = Part.of(cache)

    def change(codes: Codes) -> Codes:
        edit(part, codes)
        return codes

    recode(cache, array, change, column)
    return cache


@pytest.mark.many
@pytest.mark.parametrize("name", REFUSED)
def test_numbers_that_cannot_be_decoded_are_refused(tmp_path: Path, name: str) -> None:
    assert_refused(edited(tmp_path, REFUSED[name]), REFUSED[name][-1])


@pytest.mark.many
@pytest.mark.parametrize("name", NAMED)
def test_numbers_that_break_the_rules_are_named(tmp_path: Path, name: str) -> None:
    assert_named(edited(tmp_path, NAMED[name]), NAMED[name][-1])


def test_rising_log_p_are_named(tmp_path: Path) -> None:
    cache = fresh_cache(tmp_path / "cache", "topk")
    part = Part.of(cache)

    def swap(codes: Codes) -> Codes:
        first, second = int(codes[part.value]), int(codes[part.value + 1])
        codes[part.value], codes[part.value + 1] = first + second, (1 << 32) - second
        if part.n_exact[part.trained] > 2:
            codes[part.value + 2] += np.uint32(second)
        assert second > 1
        return codes

    recode(cache, "logprob", swap)
    assert_named(cache, "exact ids do not descend in probability")


def test_writing_the_same_numbers_again_changes_nothing_that_is_read(tmp_path: Path) -> None:
    for kind, array, column in (("threshold", "row", "entropy"), ("sampled", "times", ""), ("state", "state", "")):
        cache = fresh_cache(tmp_path / f"{kind}-{array}", kind)
        recode(cache, array, lambda codes: codes, column)
        verdict = judged(cache)
        assert (verdict.code, verdict.verify_code, verdict.problems) == (0, 0, [])
