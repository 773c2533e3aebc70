"""The small cache that is copied and read from afar."""

from pathlib import Path

import pytest

from support import tiny


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache in a folder."""
    folder = tmp_path_factory.mktemp("transfer") / "cache"
    with tiny.unsynced():
        tiny.make_cache(folder)
    return folder
