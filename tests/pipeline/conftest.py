"""What tests of the pipeline share: a run does not read its student again in a process of its own, unless asked to."""

from collections.abc import Iterator

import pytest

from kdpipe.pipeline.students.verify_saved import check_reload
from kdpipe.pipeline.training import finalize


@pytest.fixture(scope="package", autouse=True)
def no_fresh_process() -> Iterator[None]:
    """A run ends by reading its student in another process, which takes seconds: once is enough (`fresh_process`).

    Of the whole package, so that runs of module fixtures are spared it too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finalize, "check_reload", lambda *_, **__: 0.0)
        yield


@pytest.fixture
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """This test wants the student read again."""
    monkeypatch.setattr(finalize, "check_reload", check_reload)
