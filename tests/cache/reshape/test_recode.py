"""Codes cut by document, joined and put into other ranks mean what they meant; what does not add up is refused."""

from pathlib import Path

import numpy as np
import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cache.parts.part_reader import PartReader
from kdpipe.cache.reshape.coded_sequences import documents_of, joined
from kdpipe.cache.reshape.recode import CodedPart, rank_changes
from kdpipe.schemas.errors import CacheDamaged
from support.kinds import KINDS, make_kind
from support.tiny import make_cache


def part_of(path: Path) -> tuple[PartReader, CodedPart]:
    """The first part of a cache."""
    cache = open_cache(path)
    return cache.part(0), CodedPart(cache.part(0), cache.manifest, None)


@pytest.mark.parametrize("name", [n for n in KINDS if n not in ("threshold-other-quantizers", "topk-at-2", "none")])
def test_documents_joined_again_are_the_sequence_that_they_were(name: str, tmp_path: Path) -> None:
    make_kind(tmp_path / "a", name)
    manifest = open_cache(tmp_path / "a").manifest
    _, coded = part_of(tmp_path / "a")
    for i in range(len(coded)):
        whole = coded.sequence(i)
        pieces = list(documents_of(whole, manifest))
        again = joined(pieces)
        for part in ("columns", "ids", "times", "logprobs"):
            assert np.array_equal(getattr(again.coded, part), getattr(whole.coded, part))
        assert {n: v.tobytes() for n, v in again.coded.vectors.items()} == {
            n: v.tobytes() for n, v in whole.coded.vectors.items()
        }
        assert again.places.n_rows == sum(piece.places.n_rows for piece in pieces) == whole.places.n_rows
        assert np.array_equal(again.places.document_starts, whole.places.document_starts)
        assert again.places.pooled.tobytes() == whole.places.pooled.tobytes()
        assert (again.places.columns, again.texts) == (whole.places.columns, whole.texts)


def test_equal_tables_change_no_rank() -> None:
    assert rank_changes(np.array([2, 0, 1]), np.array([2, 0, 1])) is None
    assert np.array_equal(rank_changes(np.array([2, 0, 1]), np.array([1, 2, 0])), [1, 2, 0])


def test_counts_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    make_cache(tmp_path / "a")
    part, coded = part_of(tmp_path / "a")
    part.sequences.exact_starts[1] += 1
    with pytest.raises(CacheDamaged, match=r"parts/00000: .*sequences.arrow"):
        coded.sequence(0)


def test_a_rank_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    make_cache(tmp_path / "a")
    cache = open_cache(tmp_path / "a")
    with pytest.raises(CacheDamaged, match=r"parts/00000: .*out of range"):
        CodedPart(cache.part(0), cache.manifest, np.zeros(1, np.uint32)).sequence(0)
