"""Local teachers on a GPU: the same answers, half precision with wide logits, and memory that really runs out."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.models import devices
from kdpipe.pipeline.teachers.load_teacher import load
from kdpipe.pipeline.teachers.transformers_backend import teacher_shape
from kdpipe.pipeline.teachers.transformers_teacher import TransformersTeacher
from kdpipe.schemas.capture_settings import TeacherSettings
from kdpipe.schemas.target_kinds import TopK
from support.models import FAMILIES, tiny_llama, tiny_model
from support.teachers import Truth, local_teacher, request_for, segments_of

pytestmark = pytest.mark.gpu
IDS = 500
LENGTHS = (3, 40, 1, 23, 40, 2, 31)
REQUEST = request_for(TopK(k=8), IDS)


def on_gpu(folder: Path, dtype: str) -> TransformersTeacher:
    settings = TeacherSettings.model_validate({"name": str(folder), "dtype": dtype})
    return TransformersTeacher(load(settings, teacher_shape(settings), devices.choose("cuda:0")), IDS)


def errors(teacher: TransformersTeacher, truth: Truth) -> float:
    """The largest difference of a log p from the truth."""
    pieces, largest = segments_of(LENGTHS, IDS), 0.0
    groups = [pieces[:3], pieces[3:4], pieces[4:]]
    for group, answer in zip(groups, teacher.predict(groups, REQUEST), strict=True):
        wanted = np.concatenate([truth.logprobs(piece)[piece.loss_mask] for piece in group])
        ids = answer.block.ids.reshape(len(wanted), 8)
        found = answer.block.logprobs.reshape(ids.shape)
        largest = max(largest, float(np.abs(found - np.take_along_axis(wanted, ids, 1)).max()))
    return largest


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_answers_of_a_gpu_are_those_of_each_document_read_alone(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path, (512, 64, 2))
    teacher = on_gpu(folder, "float32")
    assert teacher.forward.head is not None
    assert errors(teacher, Truth(folder, IDS)) < 2e-3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gives_logits_that_are_not_rounded_to_it(dtype: str, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    teacher = on_gpu(folder, dtype)
    head = teacher.forward.head
    assert head is not None and head.is_wide
    states = torch.randn(64, 64, device="cuda", dtype=head.weight_VH.dtype)
    exact = states.double() @ head.weight_VH.double().T
    torch.testing.assert_close(head.logits(states).double(), exact, atol=1e-4, rtol=1e-4)
    assert errors(teacher, Truth(folder, IDS)) < 0.5


def test_auto_is_a_type_that_the_card_computes_in(tmp_path: Path) -> None:
    wanted = "bfloat16" if torch.cuda.get_device_capability(0) >= (8, 0) else "float16"
    assert on_gpu(tiny_llama(tmp_path), "auto").record.dtype == wanted


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Leave 64 MiB more than is taken now."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(0) + (64 << 20)) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_memory_that_runs_out_halves_the_batch(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = tiny_llama(tmp_path, hidden=256)
    teacher, pieces = on_gpu(folder, "float32"), segments_of([256] * 64, IDS)
    # The first answer makes the buffers that stay.
    list(teacher.predict([pieces[:1]], REQUEST))
    request.getfixturevalue("little_memory")
    (answer,) = teacher.predict([pieces], REQUEST)
    assert answer.halved > 0
    (whole,) = local_teacher(folder, IDS).predict([pieces], REQUEST)
    assert (answer.block.ids == whole.block.ids).mean() > 0.999


def test_the_next_batch_is_read_before_the_last_is_answered(tmp_path: Path) -> None:
    teacher, taken = on_gpu(tiny_llama(tmp_path), "float32"), []

    def batches() -> Iterator[list[Segment]]:
        for piece in segments_of(LENGTHS, IDS):
            taken.append(piece)
            yield [piece]

    results = iter(teacher.predict(batches(), REQUEST))
    next(results)
    assert len(taken) == 2
