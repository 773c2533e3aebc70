"""A small cache that the tests of stage two learn from, made once a module's process."""

from pathlib import Path

import pytest

from support.stage_two import make_cache


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with teacher and cache."""
    folder = tmp_path_factory.mktemp("stage-two")
    make_cache(folder)
    return folder


@pytest.fixture(autouse=True)
def no_fresh_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends by reading its student in another process, which takes seconds: once is enough (`fresh_process`)."""
    if "fresh_process" not in request.fixturenames:
        monkeypatch.setattr("kdpipe.pipeline.training.finish.check_reload", lambda *_, **__: 0.0)


@pytest.fixture
def fresh_process() -> None:
    """This test wants the student read again."""
