"""A small cache that the tests of stage two learn from, made once a module's process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kdpipe.pipeline.students.reload import check_reload
from kdpipe.pipeline.training import finish
from support.stage_two import make_cache


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with teacher and cache."""
    folder = tmp_path_factory.mktemp("stage-two")
    make_cache(folder)
    return folder


@pytest.fixture(scope="package", autouse=True)
def no_fresh_process() -> Iterator[None]:
    """A run ends by reading its student in another process, which takes seconds: once is enough (`fresh_process`).

    Of the whole package, so that runs of module fixtures are spared it too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "check_reload", lambda *_, **__: 0.0)
        yield


@pytest.fixture
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """This test wants the student read again."""
    monkeypatch.setattr(finish, "check_reload", check_reload)
