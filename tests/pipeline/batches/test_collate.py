"""A micro-batch against a plain loop over rows and ids, for every kind of target, and what is refused."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from kdpipe.cache import Cache, open_cache
from kdpipe.cache.parts.part_reader import PartReader
from kdpipe.pipeline.batches.collate import BatchContents, check_contents, make_batch
from kdpipe.pipeline.batches.micro_batch import MicroBatch, StepBatch, Targets
from kdpipe.schemas.errors import CacheDamaged, Incompatible
from kdpipe.schemas.target_kinds import Imported, NoTargets, Sampled, State, Threshold, TopK, TopP
from kdpipe.schemas.targets import KeptSpec
from support.arbitrary import Wish, write
from support.batches import equal_batches

KEPT: dict[str, KeptSpec] = {
    "threshold": Threshold(tau=0.1, max_entries=12),
    "sampled": Sampled(draws=9),
    "topk": TopK(k=8),
    "topp": TopP(p=0.9, max_entries=20),
    "imported": Imported(source="elsewhere", max_entries=5, tail_known=True),
    "imported-blind": Imported(source="elsewhere", max_entries=5),
    "state": State(width=6, group=4),
    "none": NoTargets(),
}
ALL = BatchContents(targets=True, statistics=True)


def wish_of(kind: str) -> Wish:
    wish = Wish(keep=KEPT[kind], draw_values=kind == "sampled", temperatures=(2.0, 0.5), hidden=True)
    return replace(wish, target_temperature=2.0) if kind == "threshold" else wish


def by_hand(cache: Cache, numbers: Sequence[int]) -> dict[str, list[Any]]:
    """What the trained rows hold, row by row and entry by entry."""
    longest = max(len(cache[number]) for number in numbers)
    names = ("places", "sequence", "labels", "count", "n_exact", "ids", "weights", "logprobs", "log_tail", "entropy")
    found: dict[str, list[Any]] = {name: [] for name in (*names, "label_logprob", "state", "log_z", "hidden")}
    for b, number in enumerate(numbers):
        rows, entry = cache[number], 0
        for t in range(len(rows)):
            own = slice(entry, entry + int(rows.count[t]))
            entry = own.stop
            if not rows.loss_mask[t]:
                continue
            found["places"].append(b * longest + t)
            found["sequence"].append(b)
            found["labels"].append(int(rows.tokens[t + 1]))
            for name in ("count", "n_exact", "log_tail", "entropy", "label_logprob", "state"):
                values = getattr(rows, name)
                found[name].append(None if values is None else values[t].tolist())
            for name in ("ids", "weights", "logprobs"):
                found[name].append(getattr(rows, name)[own].tolist())
            found["log_z"].append({temperature: values[t].item() for temperature, values in rows.log_z.items()})
            found["hidden"].append({layer: values[t].tolist() for layer, values in rows.hidden.items()})
    return found


def check_entries(targets: Targets, due: dict[str, list[Any]]) -> None:
    """Each row's entries, and behind them its first id with nothing of weight."""
    assert targets.ids_NK.shape == (len(due["count"]), max([1, *due["count"]]))
    for row, count in enumerate(due["count"]):
        ids, weights, logprobs = targets.ids_NK[row], targets.weights_NK[row], targets.logprobs_NK[row]
        assert ids[:count].tolist() == due["ids"][row]
        assert weights[:count].tolist() == due["weights"][row]
        assert logprobs[:count].tolist() == [-np.inf if np.isnan(x) else x for x in due["logprobs"][row]]
        assert set(ids[count:].tolist()) <= {due["ids"][row][0] if count else 0}
        assert (weights[count:] == 0).all()
        assert (logprobs[count:] == -np.inf).all()


def same(found: Tensor | None, due: list[Any]) -> None:
    if not due or due[0] is None:
        assert found is None or (not due and not len(found))
    else:
        assert found is not None
        np.testing.assert_array_equal(found.numpy(), np.array(due, found.numpy().dtype).reshape(found.shape))


@pytest.mark.parametrize("numbers", [[4, 0, 2], [2, 2, 1], [4]])
@pytest.mark.parametrize("kind", [kind for kind in KEPT if kind != "none"])
def test_a_batch_holds_what_a_plain_loop_finds(tmp_path: Path, kind: str, numbers: list[int]) -> None:
    cache = open_cache(write(tmp_path / "c", wish_of(kind)))
    batch = make_batch(cache, numbers, replace(ALL, hidden=(2, 9)))
    due, targets = by_hand(cache, numbers), batch.targets
    assert targets is not None
    same(batch.places_N, due["places"])
    same(batch.sequence_N, due["sequence"])
    same(batch.labels_N, due["labels"])
    same(batch.teacher_entropy_N, due["entropy"])
    same(batch.label_logprob_N, due["label_logprob"])
    same(targets.count_N, due["count"])
    same(targets.n_exact_N, due["n_exact"])
    same(targets.entropy_N, due["entropy"])
    same(targets.log_tail_N, due["log_tail"])
    same(targets.state_NH, due["state"])
    for temperature, values in targets.log_z.items():
        same(values, [one[temperature] for one in due["log_z"]])
    for layer, states in batch.hidden.items():
        same(states, [one[layer] for one in due["hidden"]])
    check_entries(targets, due)
    spec = cache.manifest.targets
    assert (targets.target_temperature, targets.draws_have_values) == (spec.target_temperature, spec.draw_values)
    assert set(targets.log_z) == set(spec.temperatures)
    assert set(batch.hidden) == {2, 9}


def test_tokens_stand_side_by_side_with_their_documents_numbered(tmp_path: Path) -> None:
    cache = open_cache(write(tmp_path / "c", wish_of("threshold")))
    batch = make_batch(cache, [2, 4, 0], BatchContents())
    longest = max(len(cache[number]) for number in (2, 4, 0))
    assert batch.tokens_BT.shape == batch.document_BT.shape == (3, longest)
    assert batch.numbers == (2, 4, 0)
    for b, number in enumerate(batch.numbers):
        rows = cache[number]
        n, starts = len(rows), rows.document_starts.tolist()
        assert batch.tokens_BT[b].tolist() == rows.tokens.tolist() + [0] * (longest - n)
        numbered = [sum(start <= t for start in starts) - 1 for t in range(n)]
        assert batch.document_BT[b].tolist() == numbered + [-1] * (longest - n)


def test_pooled_states_come_with_the_place_of_their_document(tmp_path: Path) -> None:
    cache = open_cache(write(tmp_path / "c", wish_of("none")))
    batch = make_batch(cache, [4, 2], BatchContents(pooled=(3, 1)))
    assert batch.document_D2 is not None
    due = [[b, d] for b, number in enumerate([4, 2]) for d in range(len(cache[number].documents))]
    assert batch.document_D2.tolist() == due
    for layer in (1, 3):
        states = np.concatenate([cache.pooled(number)[layer] for number in (4, 2)])
        assert np.array_equal(batch.pooled[layer].numpy(), states)


def test_labels_alone_need_no_targets_and_decode_none(tmp_path: Path) -> None:
    blind = open_cache(write(tmp_path / "none", wish_of("none")))
    assert make_batch(blind, [0, 2], BatchContents(statistics=True)).teacher_entropy_N is None
    cache = open_cache(write(tmp_path / "c", wish_of("threshold")))
    whole = make_batch(cache, [0, 2], ALL)
    with mock.patch.object(PartReader, "rows", side_effect=AssertionError("decoded")):
        batch = make_batch(cache, [0, 2], BatchContents())
    assert batch.targets is None
    equal_batches(batch, replace(whole, targets=None, teacher_entropy_N=None, label_logprob_N=None))


def test_states_of_rows_are_decoded_only_when_wanted(tmp_path: Path) -> None:
    cache = open_cache(write(tmp_path / "c", wish_of("topk")))
    with mock.patch.object(PartReader, "_hidden", side_effect=AssertionError("decoded")):
        assert make_batch(cache, [0], ALL).hidden == {}


def test_sequences_without_anything_to_learn_make_an_empty_batch(tmp_path: Path) -> None:
    cache = open_cache(write(tmp_path / "c", wish_of("threshold")))
    assert not cache[1].loss_mask.any()
    batch = make_batch(cache, [1], ALL)
    assert batch.targets is not None
    assert batch.targets.ids_NK.shape == (0, 1)
    assert batch.labels_N.shape == (0,)
    assert StepBatch(batches=(batch,), begin=0, end=1).n_positions == 0


def test_every_tensor_moves_with_its_batch(tmp_path: Path) -> None:
    cache = open_cache(write(tmp_path / "c", wish_of("topp")))
    batch = make_batch(cache, [0, 2], BatchContents(targets=True, statistics=True, hidden=(2,), pooled=(1,)))
    moved = StepBatch(batches=(batch,), begin=0, end=2).to(torch.device("meta")).batches[0]

    def check(one: Any, of: Any) -> int:
        tensors = 0
        for field in fields(one):
            value, other = getattr(one, field.name), getattr(of, field.name)
            for x, y in zip(_parts(value), _parts(other), strict=True):
                assert (x.device.type, x.shape, x.dtype) == ("meta", y.shape, y.dtype)
                tensors += 1
            tensors += check(value, other) if isinstance(value, Targets) else 0
        return tensors

    assert check(moved, batch) == 19
    assert moved.numbers == batch.numbers


def _parts(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return list(value.values()) if isinstance(value, dict) else []


@pytest.mark.parametrize(
    ("kind", "wants", "message"),
    [
        ("none", ALL, r"tokens only"),
        ("topk", BatchContents(hidden=(2, 5)), r"no states of rows of layer 5; cached layers: 2, 9"),
        ("topk", BatchContents(pooled=(4,)), r"no pooled states of layer 4; cached layers: 1, 3, 9"),
    ],
)
def test_what_a_cache_does_not_keep_is_refused(tmp_path: Path, kind: str, wants: BatchContents, message: str) -> None:
    cache = open_cache(write(tmp_path / "c", wish_of(kind)))
    with pytest.raises(Incompatible, match=message):
        check_contents(cache, wants)
    bare = open_cache(write(tmp_path / "bare", replace(wish_of(kind), hidden=False)))
    if wants.hidden:
        with pytest.raises(Incompatible, match="cached layers: none"):
            check_contents(bare, wants)


def test_a_mask_without_a_next_token_is_damage(tmp_path: Path) -> None:
    cache = open_cache(write(tmp_path / "c", wish_of("threshold")))
    rows = cache[0]
    wrong = replace(rows, loss_mask=np.ones_like(rows.loss_mask))
    with (
        mock.patch.object(Cache, "rows", return_value=wrong),
        pytest.raises(CacheDamaged, match=r"sequence 0 of .* last row has a loss_mask, but no next token"),
    ):
        make_batch(cache, [0], ALL)


def test_batches_are_compared_to_the_last_tensor(tmp_path: Path) -> None:
    cache = open_cache(write(tmp_path / "c", wish_of("threshold")))
    batch = make_batch(cache, [0], ALL)
    other: MicroBatch = replace(batch, labels_N=batch.labels_N + 1)
    with pytest.raises(AssertionError):
        equal_batches(batch, other)
