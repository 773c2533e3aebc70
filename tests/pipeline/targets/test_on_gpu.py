"""On a GPU the same ids are kept as on a CPU but where rounding decides, and a row's do not depend on its batch."""

import pytest
import torch

from kdpipe.pipeline.targets.draws import row_keys
from kdpipe.pipeline.targets.reduce import ReducedRows, Reducer
from support.reducing import KEPT, request, starts_word, targets

SIZE, ROWS = 32_000, 300

every_case = pytest.mark.parametrize("spec", [targets(keep, t) for keep in KEPT.values() for t in (1.0, 2.0)])


def question(device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits with a long tail, labels and keys."""
    logits = torch.randn(ROWS, SIZE, generator=torch.Generator().manual_seed(0)) * 2
    logits -= 1.05 * torch.log(torch.arange(SIZE) + 2.7)
    labels, keys = torch.arange(ROWS) * 7, row_keys(0, "train", 0, 0, ROWS)
    return logits.to(device), labels.to(device), keys.to(device)


def entries(reduced: ReducedRows) -> list[list[int]]:
    """The ids of every row."""
    counts = (reduced.n_exact_R + reduced.n_draws_R).tolist()
    return [ids[:n] for ids, n in zip(reduced.ids_RK.tolist(), counts, strict=True)]


@pytest.mark.gpu
@every_case
def test_a_gpu_keeps_what_a_cpu_keeps(spec: object) -> None:
    results = []
    for device in ("cpu", "cuda"):
        made = Reducer(request(spec, SIZE), torch.device(device), starts_word(SIZE))  # type: ignore[arg-type]  # of targets
        results.append(made.reduce(*question(device)).to("cpu"))
    one, other = results
    same = sum(a == b for a, b in zip(entries(one), entries(other), strict=True))
    # Sums of 32,000 numbers in another order: a point of the tail may fall on the other side of an id's end.
    assert same > 0.9 * ROWS
    for name, values in one.scalars.items():
        equal_rows = one.n_exact_R == other.n_exact_R
        torch.testing.assert_close(values[equal_rows], other.scalars[name][equal_rows], atol=2e-5, rtol=1e-5)


@pytest.mark.gpu
@every_case
def test_on_a_gpu_a_row_does_not_depend_on_its_batch(spec: object) -> None:
    made = Reducer(request(spec, SIZE), torch.device("cuda"), starts_word(SIZE))  # type: ignore[arg-type]  # of targets
    logits, labels, keys = question("cuda")
    whole = made.reduce(logits, labels, keys).to("cpu")
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1)).to("cuda")
    moved = made.reduce(logits[order], labels[order], keys[order]).to("cpu").take(order.cpu().argsort())
    assert entries(whole) == entries(moved)
    for name, values in whole.scalars.items():
        assert torch.equal(values, moved.scalars[name])
