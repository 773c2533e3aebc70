"""The records of a checkpoint: numbers to the bit, unknown keys and impossible states refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.schemas.checkpoint import Best, GuardState, LoopState, ScalerState
from kdpipe.schemas.errors import FileDamaged
from kdpipe.schemas.records import read_record

norms = st.lists(st.floats(0, allow_nan=False, allow_infinity=False), max_size=8)


@given(values=norms, factor=st.floats(0, 1), scale=st.floats(5e-324, 1e308), best=st.floats(-1e308, 1e308))
def test_a_state_comes_back_to_the_bit(values: list[float], factor: float, scale: float, best: float) -> None:
    state = LoopState(
        step=3,
        place=100,
        guard=GuardState(norms=tuple(values), rate_factor=factor),
        scaler=ScalerState(scale=scale, growth_tracker=7),
        best=Best(step=2, value=best),
    )
    assert read_record(LoopState, state.to_json(), "state") == state


@pytest.mark.parametrize("change", [b'"step":-1', b'"step":1.5', b'"step":3,"more":1'])
def test_what_cannot_be_is_refused(change: bytes) -> None:
    data = LoopState(step=3, place=0).to_json().replace(b'"step":3', change)
    with pytest.raises(FileDamaged, match="state: "):
        read_record(LoopState, data, "state")


def test_a_norm_that_is_no_number_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match="norms"):
        GuardState(norms=(math.nan,))
