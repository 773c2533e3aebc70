"""What waits in memory is bounded in bytes, however wide a row is, and a narrow row has all the room it may use."""

import pytest

from kdpipe.pipeline.capture.buffer_limits import (
    MAX_SEQUENCES,
    WAITING_BYTES,
    WINDOW_BATCHES,
    row_bytes,
    waiting_sequences,
    window_rows,
)
from kdpipe.schemas.target_kinds import Sampled, State, Threshold, TopK, TopP
from kdpipe.schemas.targets import HiddenSpec, KeptSpec, TargetSpec, Vector

NARROW = HiddenSpec()
WIDE = HiddenSpec(rows=tuple(Vector(layer=layer, width=4096, group=128) for layer in range(8)))


@pytest.mark.parametrize("keep", [Threshold(tau=0.04), Sampled(draws=50), TopK(k=64), State(width=8192)])
@pytest.mark.parametrize("hidden", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("batch_tokens", [2048, 16384])
def test_what_waits_fits_into_memory(keep: KeptSpec, hidden: HiddenSpec, batch_tokens: int) -> None:
    spec = TargetSpec(keep=keep)
    each = row_bytes(spec, hidden)
    assert batch_tokens <= window_rows(spec, hidden, batch_tokens) <= WINDOW_BATCHES * batch_tokens
    assert window_rows(spec, hidden, batch_tokens) * each <= max(WAITING_BYTES, batch_tokens * each)
    assert 1 <= waiting_sequences(spec, hidden, 2048) <= MAX_SEQUENCES
    assert waiting_sequences(spec, hidden, 2048) * 2048 * each <= max(WAITING_BYTES // 4, 2048 * each)


@pytest.mark.parametrize("keep", [Threshold(tau=0.04), Sampled(draws=50), TopK(k=64), TopP(p=0.95)])
def test_rows_of_ids_alone_are_sorted_within_all_the_batches_there_may_be(keep: KeptSpec) -> None:
    spec = TargetSpec(keep=keep)
    assert window_rows(spec, NARROW, 2048) == WINDOW_BATCHES * 2048
    assert waiting_sequences(spec, NARROW, 512) == MAX_SEQUENCES


def test_a_row_counts_everything_that_is_kept_of_it() -> None:
    assert row_bytes(TargetSpec(keep=State(width=1000), temperatures=()), NARROW) == 4 * 1006
    assert (
        row_bytes(
            TargetSpec(keep=TopK(k=10), temperatures=(2.0, 4.0)),
            HiddenSpec(rows=(Vector(layer=1, width=64, group=64),)),
        )
        == 4 * 92
    )
