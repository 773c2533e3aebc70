"""`kdpipe cache requantize`: what is typed, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cli.main import run
from support.tiny import make_cache, unsynced


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small cache; the disk is not waited for."""
    path = tmp_path_factory.mktemp("caches") / "cache"
    with unsynced():
        make_cache(path)
        yield path


def test_a_profile_is_a_tau(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cache", "requantize", str(cache), "--out", str(tmp_path / "new"), "--profile", "lean"]
    assert run([*words, "--temperatures", "none", "--drop", "entropy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["action"] == "requantize"
    targets = open_cache(tmp_path / "new").manifest.targets
    assert (targets.keep.tau, targets.temperatures, targets.entropy) == (0.1, (), False)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--profile", "fine"], "--tau 0.02 needs more than the cache has, which was made with 0.04"),
        (["--profile", "lean", "--tau", "0.1"], "--profile and --tau both set tau"),
        (["--temperatures", "two"], "--temperatures two is not a list of numbers"),
        (["--tau", "2"], "tau: input should be less than or equal to 1"),
        (["--drop", "tokens"], "drop.0: input should be 'draw-values', 'boundary', 'entropy' or 'hidden'"),
    ],
)
def test_invalid_settings_exit_2(
    words: list[str], message: str, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache", "requantize", str(cache), "--out", str(tmp_path / "new"), *words]) == 2
    assert f"error: {message}\n" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
