"""Orders: each epoch is a permutation, ascending where required, the same for a seed and another for the next."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdpipe.cache import Cache, open_cache
from kdpipe.cache.order import SequenceOrder
from kdpipe.pipeline.batches.batch_order import Ascending, mean_entropies, ordering
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.target_kinds import NoTargets
from support.arbitrary import Wish, write
from support.tiny import SMALL, begin_cache, make_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    path = tmp_path_factory.mktemp("ordering") / "cache"
    make_cache(path, replace(SMALL, documents={"train": 40, "validation": 4}))
    return open_cache(path, "train")


def test_every_epoch_of_every_order_has_every_sequence(cache: Cache) -> None:
    n = len(cache)
    for name in ("shuffled", "entropy", "length"):
        order = ordering(cache, name, 3)
        assert len(order) == n
        for epoch in (0, 1, 5):
            line = order.at(np.arange(epoch * n, (epoch + 1) * n))
            assert sorted(line.tolist()) == list(range(n))


def test_shuffled_is_the_order_of_the_cache(cache: Cache) -> None:
    places = np.arange(3 * len(cache))
    due = SequenceOrder(cache.sequences_by_part, 11).at(places)
    assert np.array_equal(ordering(cache, "shuffled", 11).at(places), due)


def test_entropy_goes_up_as_the_rows_say(cache: Cache) -> None:
    means = []
    for rows in cache:
        assert rows.entropy is not None
        means.append(np.mean(rows.entropy[rows.loss_mask], dtype=np.float64))
    np.testing.assert_allclose(mean_entropies(cache), means, rtol=1e-12)
    line = ordering(cache, "entropy", 0).at(np.arange(len(cache)))
    assert (np.diff(np.array(means)[line]) >= 0).all()
    assert len({round(mean, 9) for mean in means}) > 2


def test_length_goes_up_and_equal_lengths_are_shuffled_again(cache: Cache) -> None:
    n, lengths = len(cache), np.array([len(rows) for rows in cache])
    order = ordering(cache, "length", 0)
    first, second = order.at(np.arange(n)), order.at(np.arange(n, 2 * n))
    assert (np.diff(lengths[first]) >= 0).all()
    assert (np.diff(lengths[second]) >= 0).all()
    assert first.tolist() != second.tolist()
    assert first.tolist() != ordering(cache, "length", 1).at(np.arange(n)).tolist()


def test_a_position_gives_the_same_whatever_else_is_requested(cache: Cache) -> None:
    places = [70, 0, 3, 3, 41, 200]
    for name in ("entropy", "length"):
        together = ordering(cache, name, 5).at(places)
        assert together.tolist() == [int(ordering(cache, name, 5).at([place])[0]) for place in places]


def test_sequences_without_a_number_come_last() -> None:
    order = Ascending(SequenceOrder([4], 0), np.array([np.nan, 2.0, -1.0, np.nan]))
    assert order.at([0, 1]).tolist() == [2, 1]
    assert sorted(order.at([2, 3]).tolist()) == [0, 3]


def test_a_sequence_with_nothing_to_learn_has_no_entropy(tmp_path: Path) -> None:
    wish = Wish(keep=SMALL.targets.keep.model_copy(update={"max_entries": 4}), part_lengths=((1, 9, 1), (20,)))
    means = mean_entropies(open_cache(write(tmp_path / "c", wish)))
    assert np.isnan(means[[0, 2]]).all()
    assert len(means) == 4


def test_a_cache_without_entropy_cannot_be_ordered_by_it(tmp_path: Path) -> None:
    bare = open_cache(write(tmp_path / "c", Wish(keep=NoTargets(), part_lengths=((9,),))))
    with pytest.raises(Incompatible, match="does not contain the teacher's entropy") as caught:
        ordering(bare, "entropy", 0)
    assert "run.order=shuffled" in str(caught.value.hint)


def test_a_split_without_sequences_is_refused(tmp_path: Path) -> None:
    begin_cache(tmp_path / "c")
    with pytest.raises(ConfigError, match="has no sequences in train"):
        ordering(open_cache(tmp_path / "c", "train", allow_partial=True), "shuffled", 0)
