"""What every teacher must do, as a suite of tests to inherit.

In: a teacher, what it is asked, and the truth it knows, given by the class that inherits. Out: its tests.
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
from support.teachers import Doubles, pieces_of

LENGTHS = (9, 1, 30, 17, 2, 30, 5)
# What is left of float32 sums over a few hundred numbers.
CLOSE = 2e-4


class TeacherContract:
    """Subclasses are collected as Test*; they say how many ids there are and give what is held against what."""

    vocabulary = 300

    def teacher(self) -> Teacher:
        """The teacher, ready to answer."""
        raise NotImplementedError

    def asked(self) -> TargetRequest:
        """A question that it can answer, for the top ids of every row."""
        raise NotImplementedError

    def refused(self) -> TargetRequest | None:
        """A question that it cannot answer."""
        raise NotImplementedError

    def truth(self, piece: Segment) -> Doubles:
        """Log p [T, V] of a document read alone."""
        raise NotImplementedError

    def pieces(self) -> list[Segment]:
        return pieces_of(LENGTHS, self.vocabulary)

    def blocks(self, groups: Sequence[Sequence[int]]) -> dict[int, Block]:
        """The rows of each piece, whatever batch it was in."""
        pieces, found = self.pieces(), {}
        answers = list(self.teacher().answers([[pieces[i] for i in group] for group in groups], self.asked()))
        assert len(answers) == len(groups)
        for group, answer in zip(groups, answers, strict=True):
            ends = np.cumsum([len(pieces[i]) for i in group])
            found |= dict(zip(group, cut(answer.block, ends), strict=True))
        return found

    def test_it_says_who_it_is(self) -> None:
        assert self.teacher().facts.name

    def test_no_batches_have_no_answers(self) -> None:
        assert list(self.teacher().answers([], self.asked())) == []

    def test_every_row_of_every_piece_is_there(self) -> None:
        pieces = self.pieces()
        for number, block in self.blocks([[2, 5], [3, 0], [6, 4, 1]]).items():
            assert len(block.n_exact) == len(block.n_draws) == len(pieces[number])
            assert int(block.n_exact.sum() + block.n_draws.sum()) == len(block.ids) == len(block.logprobs)

    def test_rows_that_are_not_to_be_learnt_are_empty(self) -> None:
        pieces = self.pieces()
        for number, block in self.blocks([list(range(len(pieces)))]).items():
            trained = pieces[number].loss_mask
            assert (block.n_exact[~trained] + block.n_draws[~trained] == 0).all()
            assert (block.n_exact[trained] >= 1).all()
            for scalar in (block.log_tail, block.entropy, block.label_logprob, *block.log_z.values()):
                assert scalar is None or (np.isnan(scalar) == ~trained).all()

    def test_what_is_kept_is_what_the_teacher_thinks(self) -> None:
        pieces = self.pieces()
        for number, block in self.blocks([[2, 5, 3], [0, 6], [4, 1]]).items():
            piece, truth = pieces[number], self.truth(pieces[number])
            rows = np.repeat(np.arange(len(piece)), block.n_exact)
            np.testing.assert_allclose(block.logprobs, truth[rows, block.ids], atol=CLOSE)
            first = np.cumsum(block.n_exact)[piece.loss_mask] - block.n_exact[piece.loss_mask]
            assert (block.ids[first] == truth.argmax(axis=1)[piece.loss_mask]).all()

    def test_a_row_speaks_of_the_token_that_follows(self) -> None:
        pieces = self.pieces()
        for number, block in self.blocks([[2, 5, 3, 0, 6, 4, 1]]).items():
            piece, truth = pieces[number], self.truth(pieces[number])
            rows = np.flatnonzero(piece.loss_mask)
            assert block.label_logprob is not None
            np.testing.assert_allclose(block.label_logprob[rows], truth[rows, piece.tokens[rows + 1]], atol=CLOSE)

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
        pieces, taken = self.pieces(), []

        def batches() -> Iterator[list[Segment]]:
            for piece in pieces:
                taken.append(piece)
                yield [piece]

        answers = iter(self.teacher().answers(batches(), self.asked()))
        next(answers)
        assert len(taken) <= 2

    def test_a_question_that_it_cannot_answer_is_refused(self) -> None:
        question = self.refused()
        if question is not None:
            with pytest.raises(KdpipeError):
                list(self.teacher().answers([self.pieces()], question))
