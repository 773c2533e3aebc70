"""A backend is one module and one row of a table: a teacher that returns top ids only goes through all of stage one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.pipeline.plan import plan
from kdpipe.pipeline.tokenizers.tokenizer import load_tokenizer
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.member_tables import TEACHER_BACKENDS
from kdpipe.schemas.progress import SilentProgress
from support.corpora import small_tokenizer
from support.stage_one import make_inputs, run, settings_for
from support.teachers import ListedBackend

LISTED: Any = "listed"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backend")
    make_inputs(folder, n_documents=6)
    return folder


@pytest.fixture(autouse=True)
def listed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setitem(TEACHER_BACKENDS, LISTED, "support.teachers:ListedBackend")
        yield


def listed_settings(folder: Path, **changes: dict[str, Any]) -> CaptureSettings:
    settings = settings_for(folder, **{"targets": {"kind": "topk", "top_k": 5}, **changes})
    teacher = settings.teacher.model_copy(update={"backend": LISTED})
    return settings.model_copy(update={"teacher": teacher})


def test_top_ids_of_another_backend_are_cached(folder: Path) -> None:
    report = run(listed_settings(folder))
    assert report.complete and report.entries_per_position == 5
    manifest = open_cache(folder / "cache").manifest
    assert manifest.teacher is not None and manifest.teacher.backend == LISTED
    assert not manifest.teacher.full_distribution
    assert not manifest.targets.entropy and not manifest.hidden.pooled


def test_another_backend_is_planned_without_loading_anything(folder: Path) -> None:
    report = plan(listed_settings(folder), tokens=None, probe_seconds=None, progress=SilentProgress())
    assert report.teacher == "listed" and report.n_parameters is None and report.workers == 1
    assert report.memory.weights == 0 and report.entries_per_position == 5


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"targets": {"kind": "threshold"}}, "--targets threshold"),
        ({"targets": {"kind": "topk", "temperatures": (2.0,)}}, "--temperatures"),
        ({"targets": {"kind": "topk", "for_other_tokenizers": True}}, "--for-other-tokenizers"),
        ({"targets": {"kind": "topk", "top_k": 21}}, "its 20 most probable ids"),
        ({"targets": {"kind": "topk", "top_k": 5}, "hidden": {"layers": ("1",)}}, "--hidden-layers 1"),
        ({"targets": {"kind": "topk", "top_k": 5}, "sequences": {"length": 257}}, "at most 256"),
    ],
    ids=["draws", "temperatures", "boundary", "too many ids", "states", "too long"],
)
def test_targets_beyond_the_description_are_refused(folder: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        run(listed_settings(folder, **changes))
    assert named in str(refused.value)


def test_a_tokenizer_is_compared_with_that_of_the_backend(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = load_tokenizer(str(small_tokenizer(folder / "smaller", vocabulary=400)))
    monkeypatch.setattr(ListedBackend, "tokenizer", lambda self, chat_template: small)
    with pytest.raises(Incompatible) as refused:
        run(listed_settings(folder, teacher={"tokenizer": str(folder / "teacher")}))
    assert "400" in str(refused.value)
