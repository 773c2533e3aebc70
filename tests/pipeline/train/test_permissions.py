"""Files that others are meant to read have the permissions that the umask leaves them, whichever library wrote them."""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdpipe.cache.transfer.copying import copy_cache
from kdpipe.pipeline.export import export
from kdpipe.pipeline.export_cache import export_cache
from kdpipe.pipeline.students import export_folder
from kdpipe.schemas.interop import ExportSettings
from kdpipe.schemas.progress import SilentProgress
from support import tiny
from support.stage_two import run, settings_for

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no umask")


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The umask of this process."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """The permissions of everything in a folder, and its own."""
    paths = [folder, *folder.rglob("*")]
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in paths}


def due(folder: Path, umask: int) -> dict[str, int]:
    """The permissions that the umask leaves."""
    paths = [folder, *folder.rglob("*")]
    return {str(path.relative_to(folder)): (0o777 if path.is_dir() else 0o666) & ~umask for path in paths}


@pytest.mark.slow
def test_runs_and_exports_respect_the_umask(
    folder: Path, tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_folder, "check_reload", lambda *_, **__: 0.0)
    settings = settings_for(folder, run={"max_steps": 1, "batch_size": 2}, evaluation={"limit": 1})
    run(settings.model_copy(update={"out": str(tmp_path / "run")}))
    export(tmp_path / "run", tmp_path / "student", None)
    for made in (tmp_path / "run", tmp_path / "student"):
        assert any(name.endswith("model.safetensors") for name in modes(made))
        assert modes(made) == due(made, umask)


def test_caches_and_their_exports_respect_the_umask(tmp_path: Path, umask: int) -> None:
    tiny.make_cache(tmp_path / "cache")
    copy_cache(tmp_path / "cache", tmp_path / "copy")
    settings = ExportSettings(cache=str(tmp_path / "cache"), form="parquet", out=str(tmp_path / "tables"))
    export_cache(settings, SilentProgress())
    for made in (tmp_path / "cache", tmp_path / "copy", tmp_path / "tables"):
        assert modes(made) == due(made, umask)
