"""Temperatures other than 1: a cache made for one, and warnings and refusals where a cache holds little."""

import json
import re
import shlex
from pathlib import Path

import pytest

from kdpipe.cli.main import run as command
from kdpipe.schemas.errors import Incompatible
from support.stage_two import make_cache, run, settings_for


def raw(folder: Path, targets: dict[str, object], name: str) -> float:
    """Forward KL at temperature 2 of one fresh student over one step, from a cache of some targets."""
    make_cache(folder, f"cache-{name}", targets=targets)
    batch = {"max_steps": 1, "batch_size": 8, "accumulate": 4}
    run(settings_for(folder, f"run-{name}", kept=f"cache-{name}", losses={"temperature": 2.0}, run=batch))
    first = json.loads((folder / f"run-{name}" / "metrics.jsonl").read_text().splitlines()[0])
    found = [term["raw"] for name, term in first["terms"].items() if name.startswith("forward_kl")]
    assert len(found) == 1
    return float(found[0])


@pytest.mark.slow
def test_forward_kl_at_the_target_temperature_is_the_truth_within_sampling_error(folder: Path) -> None:
    truth = raw(folder, {"kind": "state"}, "whole")
    hot = {"target_temperature": 2.0}
    estimate = raw(folder, hot, "hot")
    shifted = raw(folder, {**hot, "draw_values": False}, "no-values")
    # Of some 2,000 positions; without values the entropy within the bin is missing.
    assert estimate == pytest.approx(truth, abs=0.05)
    assert shifted > truth + 0.5


def test_little_mass_at_a_temperature_is_refused_with_commands_that_fix_it(folder: Path) -> None:
    settings = settings_for(folder, "refused-coarse", losses={"temperature": 4.0, "allow_coarse": False})
    with pytest.raises(Incompatible) as refusal:
        run(settings)
    assert refusal.value.exit_code == 4
    assert not (folder / "refused-coarse").exists()
    assert refusal.value.hint is not None and "--allow-coarse" in refusal.value.hint
    making, training = re.findall(r"`(kdpipe [^`]+)`", refusal.value.hint)
    assert making.split()[1] == "cache-teacher" and training.split()[1] == "train"
    # Labels, and top-k made to compare with, need no bin.
    run(
        settings_for(folder, "renormalized", losses={"temperature": 4.0, "logit": "renormalized"}, run={"max_steps": 1})
    )


@pytest.mark.slow
def test_the_commands_for_coarse_targets_fix_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    settings = settings_for(folder, str(tmp_path / "refused"), losses={"temperature": 3.0, "allow_coarse": False})
    own = settings.model_copy(update={"cache": settings.cache.model_copy(update={"path": "cache"})})
    with pytest.raises(Incompatible) as refusal:
        run(own)
    making, training = (shlex.split(each) for each in re.findall(r"`kdpipe ([^`]+)`", refusal.value.hint or ""))
    assert command([*making, "--seq-len", "96", "--val-fraction", "0.1"]) == 0
    more = ["--student", "student.json", "--out", str(tmp_path / "cured"), "--max-steps", "1"]
    assert command([*training, *more]) == 0
    assert "forward_kl " in capsys.readouterr().out
    lines = (tmp_path / "cured" / "metrics.jsonl").read_text()
    assert '"forward_kl"' in lines and "coarse" not in lines and "shifted" not in lines
