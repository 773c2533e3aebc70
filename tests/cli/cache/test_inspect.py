"""`kdpipe cache inspect`: a page that a person can read, and the whole summary for programs."""

import json
import shutil
from pathlib import Path

import pytest

from kdpipe.cache.inspect import inspect_cache
from kdpipe.cli.cache.inspect import page
from kdpipe.cli.main import run
from kdpipe.schemas.manifest import Origin
from kdpipe.schemas.summary import FidelitySummary
from support.tiny import SMALL, begin_cache, make_cache, write_part

# Scripts use these names.
DOCUMENTED = {
    "cache_id", "format", "complete", "teacher", "tokenizer", "splits", "documents", "sequences", "rows", "positions",
    "parts", "entries_per_position", "bytes", "bytes_per_position", "temperatures", "fidelity",
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A complete small cache and its cache_id."""
    path = tmp_path_factory.mktemp("caches") / "whole"
    return path, make_cache(path)


def shown(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["cache", "inspect", str(path)]) == 0
    answer = capsys.readouterr()
    assert answer.err == ""
    return answer.out


def test_a_page_shows_identity_contents_and_sizes(cache: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(cache[0], capsys)
    summary = inspect_cache(cache[0])
    for reported in (
        cache[1], "complete, format 1.1", "synthetic, float32, license Apache-2.0", "300 tokens", "threshold (tau 0.04",
        "normalizers for T=2, 4", f"{summary.positions:,}", "layer 2 and 4 per document", "not measured",
        "without text", f"{summary.bytes:,}",
    ):  # fmt: skip
        assert reported in text, reported
    assert max(map(len, text.splitlines())) <= 120


def test_bars_grow_with_the_bytes_they_stand_for(cache: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    after = shown(cache[0], capsys).split("bytes per position")[-1].splitlines()[1:-1]
    lengths = [line.count("█") + line.count("#") for line in after]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == 30


def test_the_document_holds_every_documented_key(cache: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "inspect", str(cache[0]), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) >= DOCUMENTED
    assert answer["cache_id"] == cache[1]
    assert answer["parts"] == {"planned": 4, "present": 4}
    assert answer["documents"] == sum(SMALL.documents.values())
    assert set(answer["entries_per_position"]) == {"mean", "p50", "p95"}
    assert {"total", "id", "logprob", "scalars", "hidden", "sequences", "text"} <= set(answer["bytes_per_position"])


def test_an_unfinished_cache_is_called_unfinished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = begin_cache(tmp_path / "begun")
    write_part(writer, 2)
    text = shown(tmp_path / "begun", capsys)
    assert "unfinished: 1 of 4 parts" in text
    assert "none yet" in text


def test_a_cache_without_any_part_can_be_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin_cache(tmp_path / "empty")
    assert "unfinished: 0 of 4 parts" in shown(tmp_path / "empty", capsys)


def test_fidelity_is_shown_when_it_was_measured(cache: tuple[Path, str]) -> None:
    fidelity = FidelitySummary(
        rows=2000,
        parts=3,
        temperature=1.0,
        kl_nats=0.0123,
        kl_error=0.0011,
        total_variation=0.045,
        total_variation_error=None,
        kept_mass={"1.0": 0.86, "2.0": 0.18},
        kept_mass_error={"1.0": 0.01, "2.0": None},
        gradient_angle_degrees=7.25,
        gradient_angle_error=0.5,
        gradient_batch=65_536,
        verdict="good: it is",
    )
    text = page(inspect_cache(cache[0]).model_copy(update={"fidelity": fidelity}))
    assert "KL 0.0123 ±0.0011 nats, total variation 0.0450, at T=1, on 2,000 rows of 3 parts" in text
    assert "86.0% ±1.0% at T=1, 18.0% at T=2" in text
    assert "7.25 ±0.50 degrees from the dense teacher's over 65,536 positions" in text
    assert "  verdict     good: it is\n" in text
    small = fidelity.model_copy(update={"kl_nats": 4.4586e-5})
    assert "KL 4.46e-05 ±0.0011 nats" in page(inspect_cache(cache[0]).model_copy(update={"fidelity": small}))
    without = fidelity.model_copy(update={"gradient_angle_degrees": None})
    assert "degrees" not in page(inspect_cache(cache[0]).model_copy(update={"fidelity": without}))


def test_a_damaged_record_is_refused_with_exit_3(
    cache: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(cache[0], tmp_path / "damaged"))
    (copy / "manifest.json").write_bytes(b"{")
    assert run(["cache", "inspect", str(copy)]) == 3
    assert "manifest.json" in capsys.readouterr().err


def test_a_page_shows_what_a_cache_was_made_from(cache: tuple[Path, str]) -> None:
    ids = tuple(character * 64 for character in "abcde")
    history = (Origin(action="subset", caches=ids[:1], note="split train"), Origin(action="merge", caches=ids))
    text = page(inspect_cache(cache[0]).model_copy(update={"history": history}))
    assert f"  made by     subset of {'a' * 16} (split train)\n" in text
    assert f"  made by     merge of {'a' * 16}, {'b' * 16}, {'c' * 16} and 2 more\n" in text
