"""Batches against a plain loop over rows and ids, whatever kind of target and whatever lay in the buffers before."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.cache import Cache, open_cache
from kdpipe.cache.batches import PaddedBatch, allocate_batch, fill_batch
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.targets import Imported, KeptSpec, NoTargets, Sampled, State, Threshold, TopK, TopP
from support.arbitrary import Wish, write

KEPT: dict[str, KeptSpec] = {
    "threshold": Threshold(tau=0.1, max_entries=12),
    "sampled": Sampled(draws=9),
    "topk": TopK(k=8),
    "topp": TopP(p=0.9, max_entries=20),
    "imported": Imported(source="elsewhere", max_entries=5),
    "state": State(width=6, group=4),
    "none": NoTargets(),
}
PADDING: dict[str, Any] = {
    "tokens_BT": 0, "document_BT": -1, "loss_mask_BT": False, "count_BT": 0, "n_exact_BT": 0,
    "ids_BTK": 0, "logprobs_BTK": np.nan, "weights_BTK": 0,
}  # fmt: skip


def filled_by_hand(cache: Cache, numbers: Sequence[int], batch: PaddedBatch) -> dict[str, Any]:
    """What the buffers must hold, entry by entry."""
    found = {name: np.full_like(getattr(batch, name), value) for name, value in PADDING.items()}
    found["lengths_B"] = np.zeros_like(batch.lengths_B)
    found.update({name: np.full_like(buffer, np.nan) for name, buffer in batch.scalars.items()})
    for b, number in enumerate(numbers):
        rows = cache[number]
        scalars: dict[str, Any] = {f"log_z@{t}": values for t, values in rows.log_z.items()}
        entry, document = 0, -1
        found["lengths_B"][b] = len(rows)
        for t in range(len(rows)):
            document += t in rows.document_starts.tolist()
            found["document_BT"][b, t] = document
            for name, source in (("tokens", "tokens"), ("loss_mask", "loss_mask"), ("count", "count")):
                found[f"{name}_BT"][b, t] = getattr(rows, source)[t]
            found["n_exact_BT"][b, t] = rows.n_exact[t]
            for name in batch.scalars:
                found[name][b, t] = (scalars[name] if name in scalars else getattr(rows, name))[t]
            for k in range(int(rows.count[t])):
                for name in ("ids", "logprobs", "weights"):
                    found[f"{name}_BTK"][b, t, k] = getattr(rows, name)[entry]
                entry += 1
    return found


def spoil(batch: PaddedBatch) -> None:
    """Put into every buffer what no batch holds."""
    for name in (*PADDING, "lengths_B"):
        getattr(batch, name).fill(1 if name == "loss_mask_BT" else 99)
    for buffer in batch.scalars.values():
        buffer.fill(99)


def check(cache: Cache, numbers: Sequence[int], batch: PaddedBatch) -> None:
    fill_batch(cache, numbers, batch)
    for name, array in filled_by_hand(cache, numbers, batch).items():
        buffer = batch.scalars[name] if name in batch.scalars else getattr(batch, name)
        np.testing.assert_array_equal(buffer, array, err_msg=name)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("kind", KEPT)
def test_a_batch_holds_what_a_plain_loop_finds(tmp_path: Path, kind: str, dtype: type[np.signedinteger[Any]]) -> None:
    has_draws = kind in ("threshold", "sampled")
    wish = Wish(keep=KEPT[kind], draw_values=kind == "sampled", boundary=has_draws, temperatures=(2.0, 0.5))
    if has_draws:
        wish = replace(wish, target_temperature=2.0)
    cache = open_cache(write(tmp_path / "c", wish))
    batch = allocate_batch(cache, 3, dtype=dtype)
    assert batch.ids_BTK.dtype == batch.tokens_BT.dtype == batch.lengths_B.dtype == dtype
    assert batch.ids_BTK.shape == (3, 512, wish.targets.max_entries)
    names = {"threshold", "sampled", "topk", "topp"}
    assert ("log_tail" in batch.scalars) == (kind in names)
    assert "drawn_log_tail" not in batch.scalars
    assert ("boundary_logprob" in batch.scalars) == has_draws
    assert ("log_z@2.0" in batch.scalars) == (kind != "none")
    for numbers in ([4, 0, 2], [1, 1, 3], [-1, 0, 1]):
        spoil(batch)
        check(cache, numbers, batch)


@pytest.mark.parametrize("kind", ["threshold", "none"])
def test_a_buffer_used_again_keeps_nothing_of_the_batch_before(tmp_path: Path, kind: str) -> None:
    cache = open_cache(write(tmp_path / "c", Wish(keep=KEPT[kind], part_lengths=((64, 1, 30, 1),))))
    batch = allocate_batch(cache, 1)
    for number in (0, 1, 2, 3, 0):
        check(cache, [number], batch)
    assert batch.ids_BTK.shape[2] == cache.manifest.targets.max_entries


def test_buffers_may_be_just_large_enough(tmp_path: Path) -> None:
    cache = open_cache(write(tmp_path / "c", Wish(keep=TopK(k=8), part_lengths=((30, 20),))))
    most = max(int(rows.count.max()) for rows in cache)
    batch = allocate_batch(cache, 2, n_entries=most)
    assert batch.ids_BTK.shape == (2, 512, most)
    check(cache, [1, 0], batch)


def test_documents_are_numbered_from_0_and_padding_is_minus_1(tmp_path: Path) -> None:
    cache = open_cache(write(tmp_path / "c", Wish(keep=NoTargets(), part_lengths=((30,),))))
    batch = allocate_batch(cache, 1)
    fill_batch(cache, [0], batch)
    starts = cache[0].document_starts.tolist()
    lengths = np.diff([*starts, 30]).tolist()
    due = [number for number, length in enumerate(lengths) for _ in range(length)]
    assert batch.document_BT[0].tolist() == due + [-1] * (512 - 30)


def test_too_many_rows_ids_or_sequences_are_refused_with_both_sizes(tmp_path: Path) -> None:
    cache = open_cache(write(tmp_path / "c", Wish(keep=TopK(k=8), part_lengths=((30, 20),))))
    most = int(cache[0].count.max())
    narrow = allocate_batch(cache, 1, n_entries=most - 1)
    with pytest.raises(ConfigError, match=f"30 rows of up to {most} ids, the buffers hold 512 of {most - 1}"):
        fill_batch(cache, [0], narrow)
    whole = allocate_batch(cache, 1)
    short = replace(whole, **{name: getattr(whole, name)[:, :29] for name in PADDING})
    with pytest.raises(ConfigError, match=r"30 rows of up to .* ids, the buffers hold 29 of 8"):
        fill_batch(cache, [0], short)
    with pytest.raises(ConfigError, match="2 sequences are to fill buffers for 1"):
        fill_batch(cache, [0, 1], whole)
    with pytest.raises(IndexError, match="there is no sequence 2"):
        fill_batch(cache, [2], whole)


def test_buffers_with_gaps_are_filled_like_others(tmp_path: Path) -> None:
    cache = open_cache(write(tmp_path / "c", Wish(keep=TopK(k=8), part_lengths=((30, 20),))))
    wide = allocate_batch(cache, 2, n_entries=16)
    spoil(wide)
    with_gaps = replace(wide, **{name: getattr(wide, name)[:, :, :8] for name in PADDING if name.endswith("BTK")})
    check(cache, [0, 1], with_gaps)
    assert (wide.ids_BTK[:, :, 8:] == 99).all()
