"""A small teacher with its cache, and a config of a student, made once for these tests."""

from pathlib import Path

import pytest

from support.stage_two import make_cache, settings_for


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    make_cache(folder)
    settings_for(folder)
    return folder
