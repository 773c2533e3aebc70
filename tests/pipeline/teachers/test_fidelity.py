"""Fidelity is measured while a teacher answers, on rows spread evenly over the documents."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.teachers.padded import pad
from kdpipe.pipeline.teachers.transformers_teacher import TransformersTeacher
from kdpipe.schemas.target_kinds import State, Threshold, TopK
from support.models import tiny_llama
from support.teachers import local_teacher, request_for, segments_of

IDS = 300
LENGTHS = (40, 33, 21, 60, 2, 17)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TransformersTeacher:
    return local_teacher(tiny_llama(tmp_path_factory.mktemp("llama"), vocabulary=IDS), IDS)


def request(keep: Threshold | TopK | State, every: int) -> TargetRequest:
    unigram = np.full(IDS, 1 / IDS, np.float32)
    return replace(request_for(keep, IDS), fidelity_every=every, unigram=unigram)


def test_nothing_is_compared_by_default(teacher: TransformersTeacher) -> None:
    list(teacher.predict([segments_of(LENGTHS, IDS)], request(TopK(k=8), 0)))
    assert teacher.fidelity() is None


def test_every_nth_position_is_compared_once(teacher: TransformersTeacher) -> None:
    segments, question = segments_of(LENGTHS, IDS), request(Threshold(tau=0.04), 4)
    list(teacher.predict([segments[:2], segments[2:]], question))
    found = teacher.fidelity()
    chosen = [(segment.document + np.arange(len(segment))) % 4 == 0 for segment in segments]
    assert found is not None
    assert found.n_rows == sum(int((c & segment.loss_mask).sum()) for c, segment in zip(chosen, segments, strict=True))
    assert found.gradient_angle_degrees is not None and 0 < found.gradient_angle_degrees < 60
    assert teacher.fidelity() is None


def test_how_pieces_are_batched_changes_no_number_but_by_noise(teacher: TransformersTeacher) -> None:
    segments, question = segments_of(LENGTHS, IDS), request(TopK(k=8), 2)
    results = []
    for groups in ([segments], [[segment] for segment in segments]):
        list(teacher.predict(groups, question))
        results.append(teacher.fidelity())
    first, second = results
    assert first is not None and second is not None
    assert first.n_rows == second.n_rows
    assert first.total_variation == pytest.approx(second.total_variation, abs=1e-4)
    assert first.gradient_angle_degrees == pytest.approx(second.gradient_angle_degrees, abs=0.01)


def test_states_are_the_whole_distribution_and_are_not_compared(teacher: TransformersTeacher) -> None:
    list(teacher.predict([segments_of(LENGTHS, IDS)], request(State(width=64), 4)))
    assert teacher.fidelity() is None


def test_compared_rows_prefer_no_place_in_a_text() -> None:
    segments = segments_of([16] * 16, IDS)
    batch = pad(segments, seed=0, compare_every=16)
    places = batch.positions_R[batch.compared_S] % 16
    # The stretches that odd documents do not learn are without their share.
    assert sorted(places.tolist()) == sorted(set(places.tolist()))
    assert len(places) >= 12


def test_a_model_with_logits_of_its_own_is_compared_without_gradients(tmp_path: Path) -> None:
    teacher = local_teacher(tiny_llama(tmp_path, vocabulary=IDS), IDS)
    teacher.forward.head = None
    list(teacher.predict([segments_of(LENGTHS, IDS)], request(TopK(k=8), 4)))
    found = teacher.fidelity()
    assert found is not None and found.n_rows > 20
    assert found.gradient_angle_degrees is None
