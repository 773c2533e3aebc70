"""Out of memory: which errors say so, and what to lower, by what is not lowered yet."""

import json
from typing import Any

import pytest
import torch

from kdpipe.pipeline.models.memory import is_out_of_memory
from kdpipe.pipeline.training.out_of_memory import explained
from kdpipe.schemas.errors import KdpipeError
from kdpipe.schemas.train_settings import TrainSettings

OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 68719476736 bytes."),
    MemoryError(),
)


def settings(**sections: Any) -> TrainSettings:
    return TrainSettings.model_validate_json(json.dumps(sections))


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:20])
def test_every_word_for_it_becomes_advice(error: Exception) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(KdpipeError, match="out of memory at step 3") as told, explained(settings(), "at step 3"):
        raise error
    assert told.value.exit_code == 1
    assert str(error)[:20] in told.value.message
    assert told.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2"), ValueError("not enough memory"), KeyError("a")])
def test_other_errors_are_left_as_they_are(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as told, explained(settings(), "at step 3"):
        raise error
    assert told.value is error


NEW = "begin anew with a smaller student, or --lora for one that has been trained, or a cache with a shorter --seq-len"


@pytest.mark.parametrize(
    ("sections", "hint"),
    [
        (
            {},
            "run it again with --set machine.portion=1 or --set student.gradient_checkpointing=true, which goes "
            f"on from the last checkpoint; or {NEW}",
        ),
        (
            {"losses": {"weights": {"cka": 0.1}}, "student": {"gradient_checkpointing": True}},
            f"run it again with --set machine.portion=4, which goes on from the last checkpoint; or {NEW}",
        ),
        ({"machine": {"portion": 1}, "student": {"gradient_checkpointing": True}}, NEW),
        ({"run": {"batch_size": 1}, "student": {"gradient_checkpointing": True}}, NEW),
        (
            {"run": {"batch_size": 1}, "student": {"gradient_checkpointing": True, "lora": True}},
            "begin anew with a smaller student, or a cache with a shorter --seq-len",
        ),
    ],
    ids=["all", "groups", "portion", "least", "lora"],
)
def test_what_to_lower_is_what_can_be(sections: dict[str, Any], hint: str) -> None:
    with pytest.raises(KdpipeError) as told, explained(settings(**sections), "at step 3"):
        raise MemoryError
    assert told.value.message == "out of memory at step 3"
    assert told.value.hint == hint
