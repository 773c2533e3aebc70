"""What was reduced is what the writer takes, and what the reader gives back within the codec's bounds."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdpipe.cache.format.rows import Rows
from kdpipe.cache.verify import verify_cache
from kdpipe.pipeline.targets.reduce import to_block
from kdpipe.schemas.arrays import SCALAR_STEP
from kdpipe.schemas.errors import CacheWriteError
from kdpipe.schemas.target_kinds import Sampled, Threshold, TopK
from kdpipe.schemas.targets import KeptSpec
from support import dense_twin
from support.answered import answered, read_back
from support.reducing import KEPT, awkward, reduce_rows, starts_word, targets

SIZE = 300
# As in test_reduce.py: what float32 rounds before anything is coded.
NEAR = 1e-5
# docs/cache-format.md, Quantizers: the step of logprob and half a step of log_tail.
SCALAR_BOUND = SCALAR_STEP / 2 + NEAR
LOGPROB_BOUND = 1 / 16 + SCALAR_BOUND


def all_rows(size: int) -> torch.Tensor:
    """The awkward rows, and as many again as a teacher would say."""
    noise = torch.randn(60, size, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.5, 6, 60)[:, None]
    return torch.cat([torch.stack(list(awkward(size).values())), noise])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("size", [2, SIZE])
def test_the_reader_returns_the_predictions(kept: str, temperature: float, size: int, tmp_path: Path) -> None:
    spec = targets(KEPT[kept], temperature)
    given = answered(spec, all_rows(size))
    rows = read_back(given, tmp_path / "cache")
    starts = np.cumsum(rows.count) - rows.count
    assert not rows.count[~given.sequence.loss_mask].any()
    for r, t in enumerate(given.positions.tolist()):
        logits, label = given.logits[r].numpy(), int(given.labels[r])
        entries = slice(int(starts[t]), int(starts[t] + rows.count[t]))
        check_exact(rows, t, entries, dense_twin.log_softmax(logits))
        due = dense_twin.scalars(logits, label, spec.temperatures, starts_word(size).numpy())
        check_scalars(rows, t, due, is_exact=label in rows.ids[entries][: rows.n_exact[t]])
        if rows.count[t] > rows.n_exact[t]:
            assert float(rows.weights[entries].sum()) == pytest.approx(1, abs=NEAR)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kept", KEPT)
def test_a_cache_of_what_was_reduced_passes_deep_verification(kept: str, temperature: float, tmp_path: Path) -> None:
    read_back(answered(targets(KEPT[kept], temperature), all_rows(SIZE)), tmp_path / "cache")
    assert not list(verify_cache(tmp_path / "cache", level="deep").problems)


def check_exact(rows: Rows, t: int, entries: slice, logp: np.ndarray) -> None:
    ids, n_exact = rows.ids[entries], int(rows.n_exact[t])
    assert len(set(ids.tolist())) == len(ids)
    assert ids[0] == logp.argmax() or logp[ids[0]] >= logp.max() - NEAR
    exact = ids[:n_exact]
    # Below -4095.875 nats the code is minus infinity.
    due = np.where(logp[exact] < -4000, -np.inf, logp[exact])
    np.testing.assert_allclose(rows.logprobs[entries][:n_exact], due, atol=LOGPROB_BOUND, rtol=0)
    tail = np.exp(logp[np.setdiff1d(np.arange(len(logp)), exact)]).sum()
    assert rows.log_tail is not None
    if 1e-30 < tail < 1:
        odds = float(rows.log_tail[t]) - math.log(-math.expm1(min(float(rows.log_tail[t]), -1e-30)))
        assert odds == pytest.approx(math.log(tail) - math.log1p(-tail), abs=SCALAR_BOUND)


def check_scalars(rows: Rows, t: int, due: dict[str, float], *, is_exact: bool) -> None:
    """The next token has the log p of an exact id, where it is one."""
    assert rows.entropy is not None
    assert rows.label_logprob is not None
    assert float(rows.entropy[t]) == pytest.approx(due["entropy"], abs=SCALAR_BOUND)
    if due["label_logprob"] > -255:
        assert float(rows.label_logprob[t]) == pytest.approx(
            due["label_logprob"], abs=LOGPROB_BOUND if is_exact else SCALAR_BOUND
        )
    else:
        assert rows.label_logprob[t] < -255
    for temperature, values in rows.log_z.items():
        assert float(values[t]) == pytest.approx(due[f"log_z@{temperature}"], abs=1 / 2048 + NEAR)


@pytest.mark.parametrize("keep", [Threshold(tau=1 / 25), Sampled(draws=16)], ids=lambda keep: keep.kind)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_weights_read_back_are_unbiased_up_to_the_codec(keep: KeptSpec, temperature: float, tmp_path: Path) -> None:
    n, logits = 2000, awkward(SIZE)["long tail"]
    spec = targets(keep, temperature)
    given = answered(spec, logits.expand(n, SIZE))
    rows = read_back(given, tmp_path / "cache")
    p = np.exp(dense_twin.log_softmax(logits.numpy(), temperature))
    mean = np.bincount(rows.ids, rows.weights, minlength=SIZE) / n
    exact = np.zeros(SIZE, bool)
    exact[dense_twin.by_rank(logits)[: int(rows.n_exact[1])]] = True
    share = float(p[~exact].sum()) / (keep.draws if isinstance(keep, Sampled) else int(rows.count[1] - rows.n_exact[1]))
    # Log p within its bound (divided by T), the tail within half a step of its quantizer, and five standard deviations.
    bound = np.where(exact, LOGPROB_BOUND / temperature + SCALAR_BOUND, SCALAR_BOUND) * p
    np.testing.assert_array_less(np.abs(mean - p), bound + np.where(exact, 0, 5 * np.sqrt(p * share / n)) + 1e-6)


def test_draws_carry_their_log_p_only_on_request(tmp_path: Path) -> None:
    logits = all_rows(SIZE)
    for draw_values in (False, True):
        spec = targets(Threshold(tau=1 / 25), draw_values=draw_values)
        given = answered(spec, logits)
        rows = read_back(given, tmp_path / str(draw_values))
        starts = np.cumsum(rows.count) - rows.count
        for r, t in enumerate(given.positions.tolist()):
            draws = slice(int(starts[t] + rows.n_exact[t]), int(starts[t] + rows.count[t]))
            due = dense_twin.log_softmax(logits[r].numpy())[rows.ids[draws]]
            if draw_values:
                np.testing.assert_allclose(rows.logprobs[draws], due, atol=1 / 32 + NEAR)
            else:
                assert np.isnan(rows.logprobs[draws]).all()


def test_hidden_states_pass_through_and_masked_rows_are_empty() -> None:
    spec = targets(TopK(k=4))
    rows = all_rows(SIZE)
    mask = np.zeros(len(rows) + 3, bool)
    mask[2:-1] = True
    hidden, state = {3: np.ones((len(mask), 2), np.float32)}, np.zeros((len(mask), 5), np.float32)
    reduced = reduce_rows(spec, rows, torch.zeros(len(rows), dtype=torch.int64))
    block = to_block([reduced], mask, spec, hidden, state)
    assert block.hidden is hidden
    assert block.state is state
    assert block.n_exact.tolist() == [0, 0] + [4] * len(rows) + [0]
    assert block.log_tail is not None
    assert np.isnan(block.log_tail).tolist() == (~mask).tolist()
    assert len(block.ids) == len(block.logprobs) == 4 * len(rows)


def test_positions_that_were_not_reduced_are_missed() -> None:
    spec = targets(TopK(k=4))
    reduced = reduce_rows(spec, all_rows(SIZE)[:5], torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"6 positions .* 5.*reduced"):
        to_block([reduced], np.ones(6, bool), spec)


def test_a_wrong_tail_does_not_pass_the_writer(tmp_path: Path) -> None:
    given = answered(targets(Threshold(tau=1 / 25)), all_rows(SIZE))
    assert given.block.log_tail is not None
    wrong = replace(given, block=replace(given.block, log_tail=given.block.log_tail * 2))
    with pytest.raises(CacheWriteError, match=r"not sum.*1"):
        read_back(wrong, tmp_path / "cache")
