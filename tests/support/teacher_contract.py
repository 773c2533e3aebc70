"""What every teacher must do, as a suite of tests to inherit.

In: a teacher, a request and the true distributions, from the subclass. Out: its tests.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from kdpipe.cache.format.blocks import cut
from kdpipe.cache.format.rows import Block
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.teachers import Teacher
from kdpipe.schemas.errors import KdpipeError
from support.teachers import Doubles, segments_of

LENGTHS = (9, 1, 30, 17, 2, 30, 5)
# What is left of float32 sums over a few hundred numbers.
CLOSE = 2e-4


class TeacherContract:
    """Subclasses are collected as Test*; they give the vocabulary, the teacher and the truth."""

    vocabulary = 300

    def teacher(self) -> Teacher:
        """The teacher, ready to answer."""
        raise NotImplementedError

    def request(self) -> TargetRequest:
        """A question that it can answer, for the top ids of every row."""
        raise NotImplementedError

    def refused(self) -> TargetRequest | None:
        """A question that it cannot answer."""
        raise NotImplementedError

    def truth(self, segment: Segment) -> Doubles:
        """Log p [T, V] of a document read alone."""
        raise NotImplementedError

    def segments(self) -> list[Segment]:
        return segments_of(LENGTHS, self.vocabulary)

    def blocks(self, groups: Sequence[Sequence[int]]) -> dict[int, Block]:
        """The rows of each segment, whatever batch it was in."""
        segments, found = self.segments(), {}
        results = list(self.teacher().predict([[segments[i] for i in group] for group in groups], self.request()))
        assert len(results) == len(groups)
        for group, result in zip(groups, results, strict=True):
            ends = np.cumsum([len(segments[i]) for i in group])
            found |= dict(zip(group, cut(result.block, ends), strict=True))
        return found

    def test_it_has_a_record_with_a_name(self) -> None:
        assert self.teacher().record.name

    def test_no_batches_have_no_answers(self) -> None:
        assert list(self.teacher().predict([], self.request())) == []

    def test_every_row_of_every_piece_is_there(self) -> None:
        segments = self.segments()
        for number, block in self.blocks([[2, 5], [3, 0], [6, 4, 1]]).items():
            assert len(block.n_exact) == len(block.n_draws) == len(segments[number])
            assert int(block.n_exact.sum() + block.n_draws.sum()) == len(block.ids) == len(block.logprobs)

    def test_rows_that_are_not_trained_on_are_empty(self) -> None:
        segments = self.segments()
        for number, block in self.blocks([list(range(len(segments)))]).items():
            trained = segments[number].loss_mask
            assert (block.n_exact[~trained] + block.n_draws[~trained] == 0).all()
            assert (block.n_exact[trained] >= 1).all()
            for scalar in (block.log_tail, block.entropy, block.label_logprob, *block.log_z.values()):
                assert scalar is None or (np.isnan(scalar) == ~trained).all()

    def test_what_is_kept_is_what_the_teacher_thinks(self) -> None:
        segments = self.segments()
        for number, block in self.blocks([[2, 5, 3], [0, 6], [4, 1]]).items():
            segment, truth = segments[number], self.truth(segments[number])
            rows = np.repeat(np.arange(len(segment)), block.n_exact)
            np.testing.assert_allclose(block.logprobs, truth[rows, block.ids], atol=CLOSE)
            first = np.cumsum(block.n_exact)[segment.loss_mask] - block.n_exact[segment.loss_mask]
            assert (block.ids[first] == truth.argmax(axis=1)[segment.loss_mask]).all()

    def test_a_row_predicts_the_next_token(self) -> None:
        segments = self.segments()
        for number, block in self.blocks([[2, 5, 3, 0, 6, 4, 1]]).items():
            segment, truth = segments[number], self.truth(segments[number])
            rows = np.flatnonzero(segment.loss_mask)
            assert block.label_logprob is not None
            np.testing.assert_allclose(block.label_logprob[rows], truth[rows, segment.tokens[rows + 1]], atol=CLOSE)

    def test_what_is_left_out_is_known(self) -> None:
        for block in self.blocks([[2, 5, 3]]).values():
            rows = np.repeat(np.arange(len(block.n_exact)), block.n_exact)
            kept = np.bincount(rows, np.exp(block.logprobs.astype(np.float64)), len(block.n_exact))
            trained = block.n_exact > 0
            assert block.log_tail is not None
            np.testing.assert_allclose(np.exp(block.log_tail[trained]), 1 - kept[trained], atol=CLOSE)

    @pytest.mark.parametrize("groups", [[[i] for i in range(7)], [[6, 0, 2, 4, 1, 5, 3]], [[1, 2], [0, 3, 4], [5, 6]]])
    def test_who_shares_a_batch_changes_nothing(self, groups: list[list[int]]) -> None:
        alone, together = self.blocks([[2, 5, 3, 0, 6, 4, 1]]), self.blocks(groups)
        for number, block in alone.items():
            np.testing.assert_array_equal(block.ids, together[number].ids)
            np.testing.assert_allclose(block.logprobs, together[number].logprobs, atol=CLOSE)

    def test_the_same_question_gets_the_same_answer_to_the_bit(self) -> None:
        first, second = (self.blocks([[2, 5, 3], [0, 6, 4, 1]]) for _ in range(2))
        for number, block in first.items():
            assert block.logprobs.tobytes() == second[number].logprobs.tobytes()

    def test_batches_are_taken_as_they_are_needed(self) -> None:
        segments, taken = self.segments(), []

        def batches() -> Iterator[list[Segment]]:
            for segment in segments:
                taken.append(segment)
                yield [segment]

        results = iter(self.teacher().predict(batches(), self.request()))
        next(results)
        assert len(taken) <= 2

    def test_a_question_that_it_cannot_answer_is_refused(self) -> None:
        question = self.refused()
        if question is not None:
            with pytest.raises(KdpipeError):
                list(self.teacher().predict([self.segments()], question))
