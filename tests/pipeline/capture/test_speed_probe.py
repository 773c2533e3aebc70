"""The probe: a fast teacher is given no more than a part can hold, one without memory has no ratio."""

from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.capture import speed_probe as probe
from kdpipe.pipeline.capture.inputs import read_inputs
from kdpipe.pipeline.capture.speed_probe import run_probe
from kdpipe.pipeline.teachers.transformers_teacher import TransformersTeacher
from kdpipe.schemas.progress import SilentProgress
from support.stage_one import make_inputs, settings_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    make_inputs(folder)
    return folder


def test_a_trial_is_no_larger_than_a_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    honest = probe.run_trial

    def remembered(*given: Any) -> Any:
        sizes.append(given[-1])
        return honest(*given)

    monkeypatch.setattr(probe, "run_trial", remembered)
    monkeypatch.setattr(probe, "MOST_TOKENS", 300)
    settings = settings_for(folder)
    probed = run_probe(settings, read_inputs(settings, SilentProgress()), 1e9)
    assert sizes == [1024, 300]
    assert probed.positions_per_second > 0 and probed.overhead_ratio is not None


def test_without_memory_for_a_bare_pass_there_is_no_ratio(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransformersTeacher, "bare_seconds", lambda self, batches: None)
    settings = settings_for(folder)
    assert run_probe(settings, read_inputs(settings, SilentProgress()), 0.1).overhead_ratio is None
