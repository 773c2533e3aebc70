"""Fidelity is measured while a teacher answers, on rows spread evenly over the documents."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.teachers.local_teacher import LocalTeacher
from kdpipe.pipeline.teachers.padded import pad
from kdpipe.schemas.targets import State, Threshold, TopK
from support.models import tiny_llama
from support.teachers import asked_for, local_teacher, pieces_of

IDS = 300
LENGTHS = (40, 33, 21, 60, 2, 17)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> LocalTeacher:
    return local_teacher(tiny_llama(tmp_path_factory.mktemp("llama"), vocabulary=IDS), IDS)


def asked(keep: Threshold | TopK | State, every: int) -> TargetRequest:
    unigram = np.full(IDS, 1 / IDS, np.float32)
    return replace(asked_for(keep, IDS), fidelity_every=every, unigram=unigram)


def test_without_being_asked_nothing_is_compared(teacher: LocalTeacher) -> None:
    list(teacher.answers([pieces_of(LENGTHS, IDS)], asked(TopK(k=8), 0)))
    assert teacher.measured() is None


def test_every_nth_position_is_compared_once(teacher: LocalTeacher) -> None:
    pieces, question = pieces_of(LENGTHS, IDS), asked(Threshold(tau=0.04), 4)
    list(teacher.answers([pieces[:2], pieces[2:]], question))
    found = teacher.measured()
    chosen = [(piece.document + np.arange(len(piece))) % 4 == 0 for piece in pieces]
    assert found is not None
    assert found.n_rows == sum(int((c & piece.loss_mask).sum()) for c, piece in zip(chosen, pieces, strict=True))
    assert found.gradient_angle_degrees is not None and 0 < found.gradient_angle_degrees < 60
    assert teacher.measured() is None


def test_how_pieces_are_batched_changes_no_number_but_by_noise(teacher: LocalTeacher) -> None:
    pieces, question = pieces_of(LENGTHS, IDS), asked(TopK(k=8), 2)
    results = []
    for groups in ([pieces], [[piece] for piece in pieces]):
        list(teacher.answers(groups, question))
        results.append(teacher.measured())
    first, second = results
    assert first is not None and second is not None
    assert first.n_rows == second.n_rows
    assert first.total_variation == pytest.approx(second.total_variation, abs=1e-4)
    assert first.gradient_angle_degrees == pytest.approx(second.gradient_angle_degrees, abs=0.01)


def test_states_are_the_whole_distribution_and_are_not_compared(teacher: LocalTeacher) -> None:
    list(teacher.answers([pieces_of(LENGTHS, IDS)], asked(State(width=64), 4)))
    assert teacher.measured() is None


def test_compared_rows_prefer_no_place_in_a_text() -> None:
    pieces = pieces_of([16] * 16, IDS)
    batch = pad(pieces, seed=0, compare_every=16)
    places = batch.positions_R[batch.compared_S] % 16
    # The stretches that odd documents do not learn are without their share.
    assert sorted(places.tolist()) == sorted(set(places.tolist()))
    assert len(places) >= 12


def test_a_model_with_logits_of_its_own_is_compared_without_gradients(tmp_path: Path) -> None:
    teacher = local_teacher(tiny_llama(tmp_path, vocabulary=IDS), IDS)
    teacher.forward.head = None
    list(teacher.answers([pieces_of(LENGTHS, IDS)], asked(TopK(k=8), 4)))
    found = teacher.measured()
    assert found is not None and found.n_rows > 20
    assert found.gradient_angle_degrees is None
