"""Chunks side by side give what one after the other gives; threads elsewhere and devices never have to wait."""

from collections.abc import Iterator

import pytest
import torch

from kdpipe.pipeline.targets.draws import row_keys
from kdpipe.pipeline.targets.lanes import Lanes
from kdpipe.pipeline.targets.reduce import ReducedRows, Reducer
from kdpipe.schemas.target_kinds import Sampled, Threshold
from support.reducing import KEPT, reducer, request, starts_word, targets

SIZE = 400


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Numbers of threads that torch is set to while a reducer is made."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def question(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels and keys of n rows."""
    logits = torch.randn(n, SIZE, generator=torch.Generator().manual_seed(n)) * 3
    return logits, torch.arange(n) % SIZE, row_keys(0, "train", 0, 0, n)


def numbers(reduced: ReducedRows) -> list[torch.Tensor]:
    """Every tensor, without the slots after the entries of a row."""
    there = torch.arange(reduced.ids_RK.shape[1]) < (reduced.n_exact_R + reduced.n_draws_R)[:, None]
    entries = [reduced.ids_RK[there], reduced.logprobs_RK[there]]
    entries += [] if reduced.times_RK is None else [reduced.times_RK[there]]
    return [reduced.n_exact_R, reduced.n_draws_R, *entries, *reduced.scalars.values()]


@pytest.mark.parametrize("keep", [Threshold(tau=1 / 25), Sampled(draws=20)], ids=lambda keep: keep.kind)
@pytest.mark.parametrize("inference", [False, True])
def test_lanes_give_what_one_thread_gives(keep: Threshold | Sampled, inference: bool) -> None:
    spec = targets(keep)
    alone = reducer(spec, SIZE).reduce(*question(700))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    together = reducer(spec, SIZE)
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)
    with torch.inference_mode(inference):
        for _ in range(3):
            found = together.reduce(*question(700))
            assert all(map(torch.equal, numbers(alone), numbers(found)))
    assert found.ids_RK.is_inference() == inference


def test_a_fault_in_a_lane_is_raised_and_the_lanes_continue(three_threads: None) -> None:
    lanes = Lanes(SIZE, torch.device("cpu"))
    logits, labels, keys = question(700)

    def fails(chunk: object, logits_RV: torch.Tensor, labels_R: torch.Tensor, keys_R: torch.Tensor) -> int:
        if len(labels_R) and int(labels_R[0]) == 128:
            raise RuntimeError("no more")
        return len(logits_RV)

    for _ in range(4):
        with pytest.raises(RuntimeError, match="no more"):
            lanes.map(fails, logits, labels, keys)
    assert sum(lanes.map(fails, logits, labels + 1, keys)) == 700
    assert lanes.map(fails, logits[:0], labels[:0], keys[:0]) == [0]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("kept", KEPT)
def test_nothing_asks_a_device_for_a_number(kept: str, temperature: float) -> None:
    """Tensors on the device `meta` have no numbers: asking for one is an error, and so is a tensor left elsewhere."""
    device = torch.device("meta")
    made = Reducer(request(targets(KEPT[kept], temperature), SIZE), device, starts_word(SIZE))
    logits, labels, keys = question(700)
    found = made.reduce(logits.to(device), labels.to(device), keys.to(device))
    assert found.ids_RK.device.type == "meta"
    assert len(found.ids_RK) == 700
