"""What a local teacher does when memory runs out, when numbers are not finite, and where its head is a riddle."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.models.devices import Placement
from kdpipe.pipeline.teachers import CaptureResult, reading
from kdpipe.pipeline.teachers import transformers_teacher as local
from kdpipe.pipeline.teachers.transformers_teacher import OWN_LOGITS, TransformersTeacher
from kdpipe.schemas.errors import ConfigError, KdpipeError
from kdpipe.schemas.target_kinds import State, TopK
from kdpipe.schemas.targets import HiddenSpec, Vector, WholeState
from support.models import tiny_llama
from support.teachers import Truth, local_teacher, request_for, segments_of

IDS = 300
REQUEST = request_for(TopK(k=8), IDS)
LENGTHS = (20, 20, 19, 18, 12, 7, 3)
OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 68719476736 bytes."),
    MemoryError(),
)

Fails = Callable[[torch.Tensor], bool]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), vocabulary=IDS)


@pytest.fixture
def teacher(folder: Path) -> TransformersTeacher:
    return local_teacher(folder, IDS)


def body_of(teacher: TransformersTeacher) -> torch.nn.Module:
    body: torch.nn.Module = teacher.forward._model.base_model
    return body


@contextmanager
def failing(teacher: TransformersTeacher, error: Exception, when: Fails) -> Iterator[list[int]]:
    """Let the model fail as a device without memory does; gives the sizes of the batches that were read."""
    read: list[int] = []

    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        if when(ids):
            raise error
        read.append(ids.numel())

    handle = body_of(teacher).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield read
    finally:
        handle.remove()


def same(left: CaptureResult, right: CaptureResult) -> bool:
    return np.array_equal(left.block.ids, right.block.ids) and np.allclose(
        left.block.logprobs, right.block.logprobs, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_halved_with_a_warning(
    error: Exception, teacher: TransformersTeacher, caplog: pytest.LogCaptureFixture
) -> None:
    segments = segments_of(LENGTHS, IDS)
    whole = list(teacher.predict([segments, segments], REQUEST))
    with caplog.at_level(logging.WARNING), failing(teacher, error, lambda ids: ids.numel() > 50) as read:
        halved = list(teacher.predict([segments, segments], REQUEST))
    assert [result.halved for result in whole] == [0, 0]
    assert [result.halved for result in halved] == [2, 2]
    assert all(same(left, right) for left, right in zip(whole, halved, strict=True))
    assert max(read) <= 50
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory at a batch of 140 tokens: halving batches of this size from now on"
    ]


@pytest.mark.slow
def test_a_size_that_did_not_fit_is_not_tried_again(teacher: TransformersTeacher) -> None:
    segments, tried = segments_of(LENGTHS, IDS), []

    def too_large(ids: torch.Tensor) -> bool:
        tried.append(ids.numel())
        return ids.numel() > 100

    with failing(teacher, OUT_OF_MEMORY[0], too_large):
        list(teacher.predict([segments, segments, segments], REQUEST))
    assert sorted(tried, reverse=True) == [140, 80, 80, 80, 36, 36, 36]


@pytest.mark.slow
def test_one_document_that_does_not_fit_is_an_error_with_its_number(teacher: TransformersTeacher) -> None:
    segments = segments_of(LENGTHS, IDS)
    with (
        failing(teacher, OUT_OF_MEMORY[0], lambda ids: ids.shape[1] >= 20),
        pytest.raises(
            KdpipeError, match="document 0 of train, 20 tokens, does not fit into the memory of cpu"
        ) as caught,
    ):
        list(teacher.predict([segments], REQUEST))
    assert "--seq-len" in str(caught.value.hint)
    assert caught.value.exit_code == 1


def test_before_a_document_is_given_up_fewer_rows_have_logits_at_a_time(teacher: TransformersTeacher) -> None:
    segments, whole = segments_of([200], IDS), list(teacher.predict([segments_of([200], IDS)], REQUEST))
    calls = iter(range(9))
    with failing(teacher, OUT_OF_MEMORY[0], lambda ids: next(calls) == 0):
        (result,) = teacher.predict([segments], REQUEST)
    assert same(whole[0], result)
    assert result.halved == 1
    # Chunks stay small, so that what comes later may differ in its last bits as well.
    (later,) = teacher.predict([segments], REQUEST)
    assert later.halved == 1


@pytest.mark.slow
def test_a_bare_forward_that_does_not_fit_has_no_time(teacher: TransformersTeacher) -> None:
    segments = segments_of(LENGTHS, IDS)
    assert (teacher.bare_seconds([segments]) or 0) > 0
    for error in OUT_OF_MEMORY:
        with failing(teacher, error, lambda ids: True):
            assert teacher.bare_seconds([segments]) is None


def test_other_errors_of_a_model_are_not_taken_for_a_lack_of_memory(teacher: TransformersTeacher) -> None:
    with (
        failing(teacher, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), lambda ids: True),
        pytest.raises(RuntimeError, match="cannot be multiplied"),
    ):
        list(teacher.predict([segments_of(LENGTHS, IDS)], REQUEST))


def poison(teacher: TransformersTeacher, name: str, row: int) -> None:
    """Put a NaN into one of the weights."""
    with torch.no_grad():
        teacher.forward._model.get_parameter(name)[row] = float("nan")


def with_token(token: int) -> list[Segment]:
    """Documents without a token, but for document 2, which has it as its 11th."""
    segments = segments_of(LENGTHS, IDS)
    for segment in segments:
        segment.tokens[segment.tokens == token] = 3
    segments[2].tokens[10] = token
    return segments


def test_numbers_that_are_not_finite_name_the_document_and_the_embeddings(teacher: TransformersTeacher) -> None:
    poison(teacher, "model.embed_tokens.weight", 77)
    with pytest.raises(KdpipeError) as caught:
        list(teacher.predict([with_token(77)], REQUEST))
    assert caught.value.message == (
        "the teacher's logits of document 2 (train) are not finite at its token 10: the first output that is not "
        "finite is of the embeddings, before layer 1 of 2"
    )
    assert caught.value.hint == "check the weights, or give --dtype float32"


def test_numbers_that_are_not_finite_name_the_first_layer(teacher: TransformersTeacher) -> None:
    poison(teacher, "model.layers.1.mlp.down_proj.weight", 5)
    with pytest.raises(KdpipeError, match=r"document 0 .*is of layer 2 of 2"):
        list(teacher.predict([segments_of(LENGTHS, IDS)], REQUEST))


def test_numbers_that_are_not_finite_name_the_output_head(teacher: TransformersTeacher) -> None:
    poison(teacher, "lm_head.weight", 299)
    with pytest.raises(KdpipeError, match="all layers have finite outputs"):
        list(teacher.predict([segments_of(LENGTHS, IDS)], REQUEST))


def test_a_stretch_that_overflows_float16_has_a_hint(folder: Path) -> None:
    teacher = local_teacher(folder, IDS, dtype="float16")
    poison(teacher, "model.layers.0.mlp.down_proj.weight", 5)
    with pytest.raises(KdpipeError, match="layer 1 of 2") as caught:
        list(teacher.predict([segments_of(LENGTHS, IDS)], REQUEST))
    assert caught.value.hint == "float16 overflows above 65,504: give --dtype bfloat16 or float32"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_answers_are_near_the_truth(dtype: str, folder: Path) -> None:
    teacher, truth, segments = local_teacher(folder, IDS, dtype=dtype), Truth(folder, IDS), segments_of(LENGTHS, IDS)
    assert teacher.forward.head is not None and teacher.record.dtype == dtype
    for segment, result in zip(segments, teacher.predict([[segment] for segment in segments], REQUEST), strict=True):
        trained = np.flatnonzero(segment.loss_mask)
        wanted = np.take_along_axis(truth.logprobs(segment)[trained], result.block.ids.reshape(len(trained), 8), 1)
        assert np.abs(result.block.logprobs.reshape(wanted.shape) - wanted).max(initial=0) < 0.5


# A model with code of its own, whose logits nothing in its config explains.
RIDDLE = """
from transformers import LlamaForCausalLM

class Riddle(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = 4 * out.logits.arctan()
        return out
"""


@pytest.fixture
def riddle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved model with its own code, and a truth that runs it too."""
    folder = tiny_llama(tmp_path / "riddle", vocabulary=IDS + 12)
    (folder / "modeling_riddle.py").write_text(RIDDLE)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_riddle.Riddle"}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def test_an_unrecognized_head_is_left_to_the_model(riddle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        teacher = local_teacher(riddle, IDS, trust_remote_code=True)
    assert teacher.forward.head is None and teacher.output_head is None
    assert teacher.record.notes == (OWN_LOGITS,) and teacher.record.remote_code
    assert OWN_LOGITS in caplog.text
    segments = segments_of(LENGTHS, IDS)
    (result,) = teacher.predict([segments], REQUEST)
    truth = Truth(riddle, IDS, trust_remote_code=True)
    wanted = np.concatenate([-np.sort(-truth.logprobs(segment), axis=1)[segment.loss_mask, :8] for segment in segments])
    np.testing.assert_allclose(result.block.logprobs.reshape(-1, 8), wanted, atol=1e-3)
    with pytest.raises(ConfigError, match="kind state need an output head that is one matrix"):
        list(teacher.predict([segments], request_for(State(width=64), IDS)))


def test_logits_of_the_models_own_are_few_at_a_time(
    teacher: TransformersTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = HiddenSpec(rows=tuple(Vector(layer=n, width=64, group=64, projection=WholeState()) for n in (1, 2)))
    segments, question = segments_of(LENGTHS, IDS), request_for(TopK(k=8), IDS, spec)
    (whole,) = teacher.predict([segments], question)
    teacher.forward.head = None
    monkeypatch.setattr(reading, "CPU_LOGITS_BYTES", 50 * 4 * IDS)
    with failing(teacher, OUT_OF_MEMORY[0], lambda ids: False) as read:
        (result,) = teacher.predict([segments], request_for(TopK(k=8), IDS, spec))
    assert read == [40, 38, 24, 3]
    assert same(whole, result) and result.halved == 0
    for layer in (1, 2):
        np.testing.assert_allclose(result.block.hidden[layer], whole.block.hidden[layer], atol=1e-5)


def test_what_a_spread_model_leaves_behind_is_freed_after_each_part(
    teacher: TransformersTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[torch.device] = []
    monkeypatch.setattr(local, "_free", freed.append)
    list(teacher.predict([segments_of(LENGTHS, IDS)], REQUEST))
    assert freed == []
    teacher._loaded = replace(teacher._loaded, placement=Placement(kind="offloaded"))
    list(teacher.predict([segments_of(LENGTHS, IDS)], REQUEST))
    assert freed == [torch.device("cpu")]


def test_a_model_that_looks_ahead_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan_capture(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        kwargs["is_causal"] = False
        return plain(module, *args, **kwargs)

    attention: Any = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
    plain = attention["sdpa"]
    monkeypatch.setitem(attention, "sdpa", plan_capture)
    with pytest.raises(ConfigError, match="is not a causal language model"):
        local_teacher(folder, IDS)
