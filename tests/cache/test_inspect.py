"""`inspect_cache`: every documented key, sums that add up to the bytes on disk, caches that are not finished."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.cache import open_cache
from kdpipe.cache.inspect import inspect_cache
from kdpipe.cache.opening import create_cache
from kdpipe.schemas.errors import CacheDamaged, ConfigError
from kdpipe.schemas.part import Fidelity
from kdpipe.schemas.target_kinds import Imported, NoTargets, Sampled, State, Threshold, TopK
from kdpipe.schemas.targets import KeptSpec
from support import tiny
from support.arbitrary import Wish, write

# Scripts use these names.
KEYS = {
    "cache_id", "format", "complete", "teacher", "tokenizer", "splits", "documents", "sequences", "rows", "positions",
    "parts", "entries_per_position", "bytes", "bytes_per_position", "temperatures", "fidelity",
}  # fmt: skip
BYTES_KEYS = {"total", "id", "logprob", "scalars", "hidden", "sequences", "text"}
KEPT: dict[str, KeptSpec] = {
    "threshold": Threshold(tau=0.1, max_entries=12),
    "sampled": Sampled(draws=9),
    "state": State(width=6, group=4),
    "imported": Imported(source="elsewhere", max_entries=5),
    "none": NoTargets(),
}


def as_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(inspect_cache(path).to_json())
    return found


@pytest.mark.parametrize("kind", KEPT)
def test_every_documented_key_is_there_and_true(tmp_path: Path, kind: str) -> None:
    wish = Wish(keep=KEPT[kind], hidden=True, text=True)
    cache = open_cache(write(tmp_path / "c", wish))
    summary = as_json(tmp_path / "c")
    assert summary.keys() >= KEYS
    assert summary["bytes_per_position"].keys() >= BYTES_KEYS
    assert (summary["cache_id"], summary["complete"], summary["format"]) == (cache.cache_id, True, "1.1")
    assert summary["parts"] == {"planned": 3, "present": 3}
    n_positions = sum(int(sequence.loss_mask.sum()) for sequence, _ in wish.pairs)
    n_rows = sum(len(sequence.tokens) for sequence, _ in wish.pairs)
    n_documents = sum(len(sequence.documents) for sequence, _ in wish.pairs)
    stated = [summary[name] for name in ("documents", "sequences", "rows", "positions")]
    assert stated == [n_documents, len(wish.pairs), n_rows, n_positions]
    split = summary["splits"]["train"]
    assert [split[name] for name in ("parts", "documents", "sequences", "rows", "positions")] == [3, *stated]
    assert summary["temperatures"] == list(wish.targets.temperatures)
    assert summary["tokenizer"]["vocabulary_size"] == 50
    assert (summary["teacher"] is None) == (kind == "none")
    assert summary["fidelity"] is None


def test_positions_entries_and_means_are_those_of_the_rows(tmp_path: Path) -> None:
    wish = Wish(keep=TopK(k=8), part_lengths=((64, 40), (30,)))
    write(tmp_path / "c", wish)
    summary = inspect_cache(tmp_path / "c")
    counts = np.concatenate([block.n_exact[sequence.loss_mask] for sequence, block in wish.pairs])
    assert summary.entries_per_position is not None
    assert summary.entries_per_position.mean == pytest.approx(counts.mean())
    ordered = np.sort(counts)
    assert summary.entries_per_position.p50 == ordered[-(-len(ordered) // 2) - 1]
    assert summary.entries_per_position.p95 == ordered[-(-95 * len(ordered) // 100) - 1]
    entropy = np.concatenate([block.entropy[s.loss_mask] for s, block in wish.pairs if block.entropy is not None])
    assert summary.entropy_nats == pytest.approx(entropy.astype(np.float64).mean(), rel=1e-6)
    tails = np.concatenate([block.log_tail[s.loss_mask] for s, block in wish.pairs if block.log_tail is not None])
    assert summary.tail_mass == pytest.approx(np.exp(tails.astype(np.float64)).mean(), rel=1e-6)


@pytest.mark.parametrize("kind", KEPT)
def test_the_sums_are_the_bytes_on_disk(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "c", Wish(keep=KEPT[kind], hidden=True, text=True, boundary=kind == "threshold"))
    summary = inspect_cache(path)
    on_disk = {name: (path / name).stat().st_size for name in tiny.files_of(path)}
    in_parts = sum(size for name, size in on_disk.items() if name.startswith("parts/"))
    text = sum(size for name, size in on_disk.items() if name.endswith("text.arrow"))
    assert summary.bytes == sum(on_disk.values())
    assert summary.shared_bytes == summary.bytes - in_parts
    named = summary.sizes.model_dump(exclude={"journal"})
    assert (sum(named.values()), named["parts"]) == (summary.bytes, in_parts)
    tokenizer = sum(size for name, size in on_disk.items() if name.startswith("tokenizer/"))
    assert (summary.sizes.tokenizer, summary.sizes.journal) == (tokenizer, 0)
    per_position = dict(summary.bytes_per_position)
    total = per_position.pop("total")
    assert total * summary.positions == pytest.approx(in_parts - text)
    assert sum(per_position.values()) == pytest.approx(total + per_position["text"])
    assert per_position["text"] * summary.positions == pytest.approx(text)
    for array in ("id", "times", "logprob", "hidden", "state"):
        shards = [size for name, size in on_disk.items() if f"targets.zarr/{array}/c/" in name]
        assert per_position.get(array, 0) * summary.positions == pytest.approx(sum(shards))
    assert all(value >= 0 for value in per_position.values())


def test_an_unfinished_cache_lists_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with tiny.unsynced():
        writer = tiny.begin_cache(path)
        nothing = as_json(path)
        assert nothing.keys() >= KEYS
        assert nothing["bytes_per_position"].keys() >= BYTES_KEYS
        assert (nothing["complete"], nothing["cache_id"], nothing["positions"]) == (False, None, 0)
        assert nothing["parts"] == {"planned": 4, "present": 0}
        assert nothing["bytes"] == sum((path / name).stat().st_size for name in tiny.files_of(path))
        tiny.write_part(writer, 3)
        one = inspect_cache(path)
        assert (one.complete, one.cache_id, one.parts.present) == (False, None, 1)
        assert (one.splits["train"].parts, one.splits["validation"].parts) == (0, 1)
        assert one.rows == sum(len(sequence.tokens) for sequence, _ in tiny.part_of(tiny.SMALL, 3))
        assert one.bytes == sum((path / name).stat().st_size for name in tiny.files_of(path))
        assert one.entries_per_position is not None


def test_fidelity_weighs_each_part_by_its_rows(tmp_path: Path) -> None:
    wish = Wish(keep=TopK(k=4), part_lengths=((9,), (9,), (9,)))
    reported = [
        Fidelity(n_rows=10, kl_nats=0.1, total_variation=0.2, kept_mass=((1.0, 0.9),), gradient_angle_degrees=8.0),
        None,
        Fidelity(n_rows=30, kl_nats=0.5, total_variation=0.6, kept_mass=((1.0, 0.5),), gradient_angle_degrees=4.0),
    ]
    with tiny.unsynced():
        writer = create_cache(tmp_path / "c", wish.manifest)
        writer.publish_tables(wish.tables)
        for number, pairs in enumerate(wish.parts):
            with writer.part(number) as part:
                part.fidelity = reported[number]
                for pair in pairs:
                    part.add(*pair)
        writer.seal()
    fidelity = inspect_cache(tmp_path / "c").fidelity
    assert fidelity is not None
    assert fidelity.rows == 40
    assert fidelity.kl_nats == pytest.approx(0.4)
    assert fidelity.total_variation == pytest.approx(0.5)
    assert fidelity.kept_mass == {"1.0": pytest.approx(0.6)}
    assert fidelity.gradient_angle_degrees == pytest.approx(5.0)
    # Residuals of 10 and 30 rows, each over 1 less its part's share: 10 x 0.3 / 0.75 and 30 x 0.1 / 0.25.
    error = pytest.approx((4**2 + 12**2) ** 0.5 / 40)
    assert (fidelity.kl_error, fidelity.total_variation_error) == (error, error)
    assert fidelity.kept_mass_error == {"1.0": error}
    assert (fidelity.rows, fidelity.parts, fidelity.temperature, fidelity.gradient_batch) == (40, 2, 1.0, 65_536)
    assert set(as_json(tmp_path / "c")["fidelity"]) >= {
        "kl_nats", "total_variation", "kept_mass", "gradient_angle_degrees",
    }  # fmt: skip


def test_what_is_no_cache_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no manifest\.json"):
        inspect_cache(tmp_path)
    path = write(tmp_path / "c", Wish(keep=NoTargets()))
    tiny.flip_bit(path / "parts/00001/part.json", 40)
    with pytest.raises(CacheDamaged, match=r"parts/00001/part\.json is not the one that index\.parquet names"):
        inspect_cache(path)
