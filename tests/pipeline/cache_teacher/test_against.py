"""A cache compared with a teacher: its own passes, another fails, and a single wrong part is named."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from kdpipe.cache import layout
from kdpipe.cache.format.ragged import draw_mask
from kdpipe.cache.format.rows import Block, Rows
from kdpipe.cache.opening import open_cache
from kdpipe.cache.reader import Cache
from kdpipe.cache.verify import verify_cache
from kdpipe.cli import main
from kdpipe.pipeline.teachers import CaptureResult, reading
from kdpipe.pipeline.teachers.transformers_teacher import TransformersTeacher
from kdpipe.pipeline.verify_against import verify_against
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.progress import SilentProgress
from support.corpora import small_tokenizer
from support.models import tiny_llama, with_own_code
from support.stage_one import VOCABULARY, make_inputs, run, settings_for

PARTS = {"part_rows": 1024}
EVERY_DOCUMENT = 1000
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("against")
    make_inputs(folder)
    small_tokenizer(tiny_llama(folder / "other", vocabulary=VOCABULARY, seed=5), vocabulary=VOCABULARY)
    run(settings_for(folder, sequences=PARTS))
    return folder


@pytest.mark.parametrize("kind", ["threshold", "sampled", "topk", "topp", "state"])
def test_a_cache_agrees_with_its_teacher(folder: Path, tmp_path: Path, kind: str) -> None:
    settings = settings_for(folder, targets={"kind": kind}, data={"limit": 8})
    run(settings.model_copy(update={"out": str(tmp_path / "cache")}))
    report = verify_against(str(tmp_path / "cache"), str(folder / "teacher"), 8, SilentProgress())
    assert report.ok and report.documents == 8 and report.positions > 300
    assert report.difference.max_nats < 1e-3
    assert report.noise.mean_nats < 1e-4


def test_a_teacher_with_its_own_code_runs_only_when_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = with_own_code(folder / "teacher", tmp_path / "own")
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    teacher = {"name": str(own), "trust_remote_code": True}
    settings = settings_for(folder, teacher=teacher, data={"limit": 8}, hidden={"pooled": False})
    run(settings.model_copy(update={"out": str(tmp_path / "cache")}))
    assert verify_against(str(tmp_path / "cache"), str(own), 8, SilentProgress(), trusted=True).ok
    assert not verify_against(str(tmp_path / "cache"), str(own), 8, SilentProgress()).ok


def test_a_sample_has_the_requested_number_of_documents(folder: Path) -> None:
    report = verify_against(str(folder / "cache"), str(folder / "teacher"), 5, SilentProgress())
    assert report.documents == 5
    report = verify_against(str(folder / "cache"), str(folder / "teacher"), EVERY_DOCUMENT, SilentProgress())
    assert report.documents == sum(len(rows.documents) for rows in open_cache(folder / "cache"))


def test_a_small_sample_reads_little_and_meets_every_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    honest = Cache.__getitem__

    def counted(self: Cache, i: int) -> Rows:
        read.append(self.locate(i)[0].record.part)
        return honest(self, i)

    monkeypatch.setattr(Cache, "__getitem__", counted)
    n_parts = len(open_cache(folder / "cache").parts)
    assert n_parts > 4
    verify_against(str(folder / "cache"), str(folder / "teacher"), n_parts, SilentProgress())
    assert sorted(read) == list(range(n_parts))


def _draws_from_anywhere(block: Block) -> Block:
    """A block whose draws are of any ids but the exact ones, each as probable as the other."""
    random, ids = np.random.default_rng(0), block.ids.copy()
    n_exact, n_draws = block.n_exact.astype(np.int64), block.n_draws.astype(np.int64)
    row_of, is_draw = np.repeat(np.arange(len(n_exact)), n_exact + n_draws), draw_mask(n_exact, n_draws)
    for row in np.flatnonzero(n_draws):
        mine = row_of == row
        others = np.setdiff1d(np.arange(VOCABULARY), ids[mine & ~is_draw])
        ids[mine & is_draw] = np.sort(random.choice(others, n_draws[row], replace=False))
    return replace(block, ids=ids)


@pytest.mark.parametrize("targets", [{"kind": "threshold"}, {"kind": "sampled"}, {"target_temperature": 2.0}], ids=str)
def test_draws_from_elsewhere_than_the_tail_are_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: dict[str, Any]
) -> None:
    settings = settings_for(folder, targets=targets, data={"limit": 8})
    run(settings.model_copy(update={"out": str(tmp_path / "right")}))
    assert verify_against(str(tmp_path / "right"), str(folder / "teacher"), EVERY_DOCUMENT, SilentProgress()).ok
    honest = reading.to_block
    monkeypatch.setattr(reading, "to_block", lambda *given, **named: _draws_from_anywhere(honest(*given, **named)))
    run(settings.model_copy(update={"out": str(tmp_path / "wrong")}))
    monkeypatch.undo()
    assert verify_cache(tmp_path / "wrong", "deep").ok
    report = verify_against(str(tmp_path / "wrong"), str(folder / "teacher"), EVERY_DOCUMENT, SilentProgress())
    assert not report.ok and {problem.part for problem in report.problems} == {0, 1}
    assert "are among the teacher's most probable ids, about" in report.problems[0].what


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": {"kind": "state"}},
        {"hidden": {"layers": ("1",), "dim": 16}},
        {"hidden": {"layers": ("1.0",), "dim": 8, "projection": "pca"}},
    ],
    ids=["state", "random", "pca"],
)
def test_states_of_other_rows_are_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    settings = settings_for(folder, data={"limit": 6}, **changes)
    run(settings.model_copy(update={"out": str(tmp_path / "right")}))
    assert verify_against(str(tmp_path / "right"), str(folder / "teacher"), EVERY_DOCUMENT, SilentProgress()).ok
    honest = reading.to_block

    def shifted(*given: Any, **named: Any) -> Block:
        block = honest(*given, **named)
        state = None if block.state is None else np.roll(block.state, 1, axis=0)
        return replace(block, hidden={n: np.roll(rows, 1, axis=0) for n, rows in block.hidden.items()}, state=state)

    monkeypatch.setattr(reading, "to_block", shifted)
    run(settings.model_copy(update={"out": str(tmp_path / "wrong")}))
    monkeypatch.undo()
    report = verify_against(str(tmp_path / "wrong"), str(folder / "teacher"), EVERY_DOCUMENT, SilentProgress())
    assert not report.ok
    assert "differs from the teacher's by" in report.problems[0].what


def test_means_of_other_documents_are_noticed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(teacher: TransformersTeacher, *given: Any) -> CaptureResult:
        result = honest(teacher, *given)
        return replace(result, pooled={layer: -vectors for layer, vectors in result.pooled.items()})

    honest = TransformersTeacher._result
    monkeypatch.setattr(TransformersTeacher, "_result", turned)
    settings = settings_for(folder, data={"limit": 6})
    run(settings.model_copy(update={"out": str(tmp_path / "wrong")}))
    monkeypatch.undo()
    assert verify_cache(tmp_path / "wrong", "deep").ok
    report = verify_against(str(tmp_path / "wrong"), str(folder / "teacher"), EVERY_DOCUMENT, SilentProgress())
    assert not report.ok
    assert re.match("the mean state of layer 1 of document .* differs from the teacher's by", report.problems[0].what)


def test_masses_of_other_words_are_noticed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(folder, data={"limit": 6}, targets={"for_other_tokenizers": True})
    run(settings.model_copy(update={"out": str(tmp_path / "right")}))
    assert verify_against(str(tmp_path / "right"), str(folder / "teacher"), EVERY_DOCUMENT, SilentProgress()).ok
    honest = reading.to_block

    def mistaken(*given: Any, **named: Any) -> Block:
        block = honest(*given, **named)
        assert block.boundary_logprob is not None
        return replace(block, boundary_logprob=np.log1p(-np.exp(block.boundary_logprob)))

    monkeypatch.setattr(reading, "to_block", mistaken)
    run(settings.model_copy(update={"out": str(tmp_path / "wrong")}))
    monkeypatch.undo()
    assert verify_cache(tmp_path / "wrong", "deep").ok
    report = verify_against(str(tmp_path / "wrong"), str(folder / "teacher"), EVERY_DOCUMENT, SilentProgress())
    assert not report.ok and "differs from the teacher's predictions by" in report.problems[0].what


def test_half_precision_agrees_with_its_teacher(folder: Path, tmp_path: Path) -> None:
    settings = settings_for(folder, teacher={"dtype": "bfloat16"}, machine={"batch_tokens": 2048})
    run(settings.model_copy(update={"out": str(tmp_path / "cache")}))
    report = verify_against(str(tmp_path / "cache"), str(folder / "teacher"), EVERY_DOCUMENT, SilentProgress())
    assert report.ok


def test_another_teacher_is_noticed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cache", "verify", str(folder / "cache"), "--against", str(folder / "other"), "--sample", "4"]
    assert main.run(words) == 3
    assert "differs from the teacher's predictions by" in capsys.readouterr().out


def test_a_part_of_another_teacher_is_named(folder: Path, tmp_path: Path) -> None:
    """Made by someone who forged the digest of the weights: every checksum is right, and every number wrong."""
    forged = tmp_path / "forged"
    shutil.copytree(folder / "cache", forged)
    (forged / layout.INDEX).unlink()
    shutil.rmtree(forged / layout.part_dir(1))
    _make_part_by_another(folder, forged)
    assert verify_cache(forged, "deep").ok
    report = verify_against(str(forged), str(folder / "teacher"), EVERY_DOCUMENT, SilentProgress())
    assert not report.ok
    assert {problem.part for problem in report.problems} == {1}


def _make_part_by_another(folder: Path, path: Path) -> None:
    from unittest import mock

    from kdpipe.pipeline.capture import capture_teacher

    manifest = open_cache(path, allow_partial=True).manifest
    honest = capture_teacher.open_teacher

    def forged(*args: object) -> capture_teacher.CaptureTeacher:
        from dataclasses import replace

        return replace(honest(*args), record=manifest.teacher)  # type: ignore[arg-type]

    settings = settings_for(folder, sequences=PARTS, teacher={"name": str(folder / "other")})
    with mock.patch("kdpipe.pipeline.capture.capture_run.open_teacher", forged):
        assert run(settings.model_copy(update={"out": str(path)})).parts.made == 1


def test_tokens_alone_have_nothing_to_compare(folder: Path, tmp_path: Path) -> None:
    settings = settings_for(folder, targets={"kind": "none"})
    run(settings.model_copy(update={"out": str(tmp_path / "cache")}))
    with pytest.raises(ConfigError, match=r"predictions.*teacher"):
        verify_against(str(tmp_path / "cache"), str(folder / "teacher"), 4, SilentProgress())
