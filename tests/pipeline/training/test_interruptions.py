"""Stop requests by signal, and advice when memory runs out."""

import json
import os
import signal
from typing import Any

import pytest
import torch

from kdpipe.pipeline.models.memory import is_out_of_memory
from kdpipe.pipeline.training.interruptions import explain_out_of_memory, stop_on_signals
from kdpipe.schemas.errors import STOP_SIGNALS, Interrupted, KdpipeError
from kdpipe.schemas.train_settings import TrainSettings

OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 68719476736 bytes."),
    MemoryError(),
)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_request_after_the_last_step_interrupts_at_the_end(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted), stop_on_signals() as stop:
        os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) is before


def test_a_second_signal_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the second signal was ignored")


def test_the_previous_handler_gets_both_signals() -> None:
    """A handler that ends the process at a second signal must get the first."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), stop_on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == [signal.SIGTERM]
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the second signal was ignored")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM] * 2


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_signal_that_the_parent_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stop_request_does_not_hide_another_error() -> None:
    with pytest.raises(ZeroDivisionError), stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ZeroDivisionError


def settings(**sections: Any) -> TrainSettings:
    return TrainSettings.model_validate_json(json.dumps(sections))


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:20])
def test_every_out_of_memory_error_is_explained(error: Exception) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(KdpipeError) as raised, explain_out_of_memory(settings(), "at step 3"):
        raise error
    assert raised.value.exit_code == 1
    assert "at step 3" in raised.value.message and str(error)[:20] in raised.value.message
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2"), ValueError("not enough memory"), KeyError("a")])
def test_other_errors_are_not_changed(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as raised, explain_out_of_memory(settings(), "at step 3"):
        raise error
    assert raised.value is error


CHECKPOINTING = "--set student.gradient_checkpointing=true"


@pytest.mark.parametrize(
    ("sections", "advised", "omitted"),
    [
        ({}, ["--set machine.portion=1", CHECKPOINTING, "--lora", "--seq-len"], []),
        (
            {"losses": {"weights": {"cka": 0.1}}, "student": {"gradient_checkpointing": True}},
            ["--set machine.portion=4", "--lora"],
            [CHECKPOINTING],
        ),
        (
            {"machine": {"portion": 1}, "student": {"gradient_checkpointing": True}},
            ["--lora"],
            ["machine.portion", CHECKPOINTING],
        ),
        ({"run": {"batch_size": 1}, "student": {"gradient_checkpointing": True}}, ["--lora"], ["machine.portion"]),
        (
            {"run": {"batch_size": 1}, "student": {"gradient_checkpointing": True, "lora": True}},
            ["--seq-len"],
            ["--lora", "machine.portion"],
        ),
    ],
    ids=["all", "groups", "portion", "least", "lora"],
)
def test_advice_names_only_settings_that_can_be_lowered(
    sections: dict[str, Any], advised: list[str], omitted: list[str]
) -> None:
    with pytest.raises(KdpipeError) as raised, explain_out_of_memory(settings(**sections), "at step 3"):
        raise MemoryError
    hint = raised.value.hint or ""
    assert all(name in hint for name in advised) and not any(name in hint for name in omitted)
