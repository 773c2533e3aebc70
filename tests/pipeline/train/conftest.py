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
