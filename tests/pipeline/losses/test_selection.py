"""Positions chosen within each sequence: against a slow twin, with ties, NaNs, and short sequences."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import MicroBatch
from kdpipe.pipeline.losses.selection import chosen, n_chosen
from kdpipe.schemas.errors import Incompatible
from kdpipe.schemas.train_settings import PositionSelection


@dataclass(frozen=True)
class StudentValues:
    entropy_N: Tensor
    cross_entropy_N: Tensor


def batch_of(sizes: list[int], values: list[float], known: bool = True) -> MicroBatch:
    sequence_N = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    n = len(sequence_N)
    return MicroBatch(
        numbers=tuple(range(len(sizes))),
        documents=tuple((i,) for i in range(len(sizes))),
        tokens_BT=torch.zeros(len(sizes), max(sizes, default=0), dtype=torch.long),
        document_BT=torch.zeros(len(sizes), max(sizes, default=0), dtype=torch.long),
        places_N=torch.arange(n),
        sequence_N=sequence_N,
        labels_N=torch.zeros(n, dtype=torch.long),
        teacher_entropy_N=torch.tensor(values) if known else None,
        label_logprob_N=-torch.tensor(values) if known else None,
    )


def twin(sizes: list[int], values: list[float], keep: str, share: float) -> list[bool]:
    """Sequence by sequence with Python's sort, which is stable."""
    mask, begin = [False] * len(values), 0
    for size in sizes:
        places = sorted(range(size), key=lambda i: values[begin + i] if keep == "lowest" else -values[begin + i])
        for place in places[: min(size, max(1, int(np.floor(share * size + 0.5))))]:
            mask[begin + place] = True
        begin += size
    return mask


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    keep=st.sampled_from(["lowest", "highest"]),
    share=st.sampled_from([0.01, 0.15, 0.2, 0.5, 0.85, 1.0]),
    data=st.data(),
)
def test_the_choice_is_that_of_a_plain_sort(sizes: list[int], keep: str, share: float, data: st.DataObject) -> None:
    n = sum(sizes)
    values = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.5]), min_size=n, max_size=n))
    batch = batch_of(sizes, values)
    selection = PositionSelection.model_validate({"term": "ce", "by": "teacher_entropy", "keep": keep, "share": share})
    mask = chosen(selection, batch, None)
    assert mask.tolist() == twin(sizes, values, keep, share)
    assert int(mask.sum()) == n_chosen(selection, batch)


def test_each_statistic_is_the_one_it_names() -> None:
    batch = batch_of([4], [0.0, 1.0, 2.0, 3.0])
    printed = StudentValues(torch.tensor([5.0, 9.0, 7.0, 6.0]), torch.tensor([1.0, 2.0, 4.0, 3.0]))
    found = {
        by: chosen(
            PositionSelection.model_validate({"term": "kd", "by": by, "keep": "highest", "share": 0.25}), batch, printed
        )
        for by in ("teacher_entropy", "label_logprob", "student_entropy", "student_cross_entropy")
    }
    assert {by: int(mask.nonzero().item()) for by, mask in found.items()} == {
        "teacher_entropy": 3, "label_logprob": 0, "student_entropy": 1, "student_cross_entropy": 2,
    }  # fmt: skip


@pytest.mark.parametrize("keep", ["lowest", "highest"])
def test_what_is_not_a_number_is_chosen_last_and_changes_no_count(keep: str) -> None:
    printed = StudentValues(torch.tensor([float("nan"), 1.0, float("nan"), 2.0]), torch.zeros(4))
    selection = PositionSelection.model_validate({"term": "ce", "by": "student_entropy", "keep": keep, "share": 0.5})
    assert chosen(selection, batch_of([4], [0.0] * 4), printed).tolist() == [False, True, False, True]


@pytest.mark.parametrize("by", ["teacher_entropy", "label_logprob"])
def test_a_statistic_that_the_cache_lacks_is_refused(by: str) -> None:
    selection = PositionSelection.model_validate({"term": "ce", "by": by, "keep": "lowest", "share": 0.5})
    with pytest.raises(Incompatible, match=by):
        chosen(selection, batch_of([2], [0.0, 0.0], known=False), None)
