"""What all tests share: a folder of their own for what a machine remembers of caches, which is gone afterwards."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is written into the folder of whoever runs the tests, and nothing found there; children inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("remembered")))
        yield
