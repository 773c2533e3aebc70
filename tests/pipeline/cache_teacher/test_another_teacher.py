"""A cache compared with a model of another size: the report gives the reason, nothing crashes."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cache.reshape.adopt import with_changes
from kdpipe.cli import main
from kdpipe.pipeline.audit.teacher_config import teacher_info_differences
from kdpipe.pipeline.teachers.transformers_backend import TransformersBackend
from kdpipe.pipeline.verify_against import verify_against
from kdpipe.schemas.capture_settings import MachineSettings, TeacherSettings
from kdpipe.schemas.progress import SilentProgress
from support.corpora import small_tokenizer
from support.models import tiny_llama
from support.stage_one import LENGTH, VOCABULARY, make_inputs, run, settings_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of two layers, 64 wide, 512 ids, and its documents."""
    folder = tmp_path_factory.mktemp("another")
    make_inputs(folder, n_documents=6)
    run(settings_for(folder, hidden={"layers": ("2",), "dim": 16}))
    return folder


def other(folder: Path, **shape: int) -> Path:
    """A model of another shape, with the tokenizer of the teacher."""
    return small_tokenizer(tiny_llama(folder / "other", **shape), vocabulary=VOCABULARY)


@pytest.mark.parametrize(
    ("shape", "reasons"),
    [
        (
            {"layers": 1},
            ["has 1 layer, the teacher of the cache has 2", "has 1 layer, the cache has states of layer 2"],
        ),
        ({"layers": 3}, ["has 3 layers, the teacher of the cache has 2"]),
        ({"hidden": 32}, ["has a hidden size of 32, the teacher of the cache has 64"]),
        ({"vocabulary": 400}, ["has 400 rows in its vocabulary, the cache has 512 ids"]),
    ],
    ids=str,
)
def test_a_model_of_another_shape_is_another_teacher(
    folder: Path, tmp_path: Path, shape: dict[str, int], reasons: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = other(tmp_path, **shape)
    words = ["cache", "verify", str(folder / "cache"), "--against", str(model)]
    assert main.run([*words, "--json"]) == 3
    result = json.loads(capsys.readouterr().out)
    assert not result["ok"] and not result["against"]["ok"] and result["against"]["noise"] is None
    assert len(result["problems"]) == len(reasons)
    for problem, why in zip(result["problems"], reasons, strict=True):
        assert set(problem) == {"part", "file", "what", "do"} and why in problem["what"]
    assert main.run(words) == 3
    shown = capsys.readouterr()
    assert reasons[0] in shown.out and "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"targets": {"kind": "state"}}, "the cache has last states of 64"),
        ({"hidden": {"layers": ("1",), "dim": 8, "projection": "pca"}}, "a projection of states of layer 1 of 64"),
        ({"hidden": {"layers": ("1",), "dim": 64}}, "the cache has states of layer 1 of 64"),
        ({"hidden": {"layers": ("1",), "dim": 8}}, None),
    ],
    ids=["state", "pca", "whole", "random"],
)
def test_without_a_stated_hidden_size_stored_states_give_the_width(
    folder: Path, tmp_path: Path, changes: dict[str, Any], reason: str | None
) -> None:
    # Pooled states of a teacher of 64 are whole ones.
    hidden = {"pooled": False, **changes.pop("hidden", {})}
    run(
        settings_for(folder, data={"limit": 6}, hidden=hidden, **changes).model_copy(
            update={"out": str(tmp_path / "c")}
        )
    )
    manifest = open_cache(tmp_path / "c").manifest
    assert manifest.teacher is not None
    unstated = with_changes(manifest, teacher=manifest.teacher.model_copy(update={"hidden_size": None}))
    settings = TeacherSettings(name=str(other(tmp_path, hidden=32)))
    info = TransformersBackend(settings, MachineSettings()).describe()
    stated = teacher_info_differences(info, manifest)
    assert len(stated) == 1 and "has a hidden size of 32, the teacher of the cache has 64" in stated[0]
    found = teacher_info_differences(info, unstated)
    assert found == [] if reason is None else len(found) == 1 and reason in found[0]


def test_a_model_of_another_width_is_not_run_where_only_random_projections_are_kept(
    folder: Path, tmp_path: Path
) -> None:
    settings = settings_for(folder, data={"limit": 6}, hidden={"pooled": False, "layers": ("1",), "dim": 8})
    run(settings.model_copy(update={"out": str(tmp_path / "cache")}))
    report = verify_against(str(tmp_path / "cache"), str(other(tmp_path, hidden=32)), 4, SilentProgress())
    assert not report.ok and report.positions == 0 and report.noise is None
    assert [problem.file for problem in report.problems] == ["manifest.json"]
    assert "has a hidden size of 32, the teacher of the cache has 64" in report.problems[0].what


def test_a_model_of_equal_size_is_run_and_differs(folder: Path, tmp_path: Path) -> None:
    settings = settings_for(folder, data={"limit": 6}, hidden={"pooled": False})
    run(settings.model_copy(update={"out": str(tmp_path / "cache")}))
    report = verify_against(str(tmp_path / "cache"), str(other(tmp_path, vocabulary=640)), 4, SilentProgress())
    assert not report.ok and report.positions > 0 and report.noise is not None
    assert "differs from the teacher's predictions" in report.problems[0].what


def test_a_model_that_reads_less_at_once_is_another_teacher(folder: Path, tmp_path: Path) -> None:
    model = other(tmp_path)
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = LENGTH - 1
    (model / "config.json").write_text(json.dumps(config))
    report = verify_against(str(folder / "cache"), str(model), 4, SilentProgress())
    assert not report.ok and f"reads at most {LENGTH - 1} tokens at once" in report.problems[0].what
