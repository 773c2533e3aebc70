"""Publishing into a local folder: built under a work name, synced, renamed once.

In: finished files of a cache. Out: files that are complete or absent, whatever kills the process or cuts the power, and
durable before anything that depends on them.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, final

import numpy.typing as npt

from kdpipe.cache import layout
from kdpipe.cache.catalog import refuse_foreign_folder, same_manifest
from kdpipe.cache.durable.files import (
    changed_within,
    make_dir,
    new_file,
    publish_dir,
    publish_file,
    sweep,
    sync_dir,
    translate_os_errors,
    work_folder,
)
from kdpipe.cache.durable.work_names import is_own
from kdpipe.cache.parts.tables import write_tables
from kdpipe.cache.stores.addresses import local_path
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import Manifest

# Writers on other machines are judged by their files; a wrong guess costs one part written twice, which is harmless.
STALE_SECONDS = 900


@final
class FolderPublisher:
    """Publishes a cache into `path`."""

    is_local = True

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self._manifest = path, manifest
        self.store = self.table_store = LocalStore(path)

    def has_tables(self) -> bool:
        return (self.path / layout.TABLES).is_dir()

    def publish_tables(self, tables: Mapping[str, npt.NDArray[Any]]) -> None:
        self._publish_folder(layout.TABLES, lambda folder: write_tables(folder, self._manifest, tables))

    def publish_tokenizer(self, files: Mapping[str, bytes]) -> None:
        def fill(folder: Path) -> None:
            for name, data in files.items():
                make_dir((folder / name).parent)
                with new_file(folder / name) as file:
                    file.write(data)

        self._publish_folder(layout.TOKENIZER, fill)

    def _publish_folder(self, name: str, fill: Callable[[Path], None]) -> None:
        with translate_os_errors(f"writing {name}", self.path):
            if not (self.path / name).is_dir():
                with work_folder(self.path, name) as work:
                    fill(work)
                    publish_dir(work, self.path / name)

    def work_folder(self, number: int) -> AbstractContextManager[Path]:
        return work_folder(self.path, f"{number:05d}")

    def publish_part(self, number: int, work: Path) -> bool:
        return publish_dir(work, self.path / layout.part_dir(number))

    def started(self) -> set[int]:
        return _part_numbers(sweep(self.path))

    def under_way(self) -> set[int]:
        """Work folders of other workers that changed in the last quarter of an hour."""
        others = [name for name in sweep(self.path) if not is_own(name)]
        return _part_numbers([name for name in others if changed_within(self.path / layout.WORK / name, STALE_SECONDS)])

    def publish_journal(self, number: int, data: bytes) -> None:
        with translate_os_errors("writing the journal", self.path):
            publish_file(self.path, self.path / layout.journal_file(number), data)

    def publish_index(self, data: bytes) -> None:
        with translate_os_errors(f"writing {layout.INDEX}", self.path):
            if not (self.path / layout.INDEX).exists():
                # The worker that committed a part may have died before the part's name was durable.
                sync_dir(self.path / layout.PARTS)
                sync_dir(self.path)
                publish_file(self.path, self.path / layout.INDEX, data)
            self._sweep()

    def _sweep(self) -> None:
        """Remove leftovers of dead workers of this machine, and the work folder if it is empty then."""
        sweep(self.path)
        try:
            os.rmdir(self.path / layout.WORK)
        except OSError:
            return
        sync_dir(self.path)


def _part_numbers(work_names: list[str]) -> set[int]:
    """The parts among some work names."""
    names = {name.partition("~")[0] for name in work_names}
    return {int(name) for name in names if layout.PART_NAME.match(name)}


def create_folder(folder: str | os.PathLike[str], manifest: Manifest) -> CacheWriter:
    """Create a cache, or resume one with the same manifest; a folder with another manifest is refused."""
    named = local_path(os.fspath(folder))
    if not named:
        raise ConfigError("the path of the new cache is empty", hint="name a new or empty folder")
    path = Path(named)
    with translate_os_errors("creating the cache", path):
        if not path.is_dir():
            make_dir(path)
        if not (path / layout.MANIFEST).exists():
            refuse_foreign_folder(path)
            publish_file(path, path / layout.MANIFEST, manifest.to_json())
        else:
            # Its writer may have died before the name was durable, and everything else depends on it.
            sync_dir(path)
    present = same_manifest(LocalStore(path), manifest, str(path))
    sweep(path)
    return CacheWriter(FolderPublisher(path, present), present)
