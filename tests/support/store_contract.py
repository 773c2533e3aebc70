"""What every store must do, as suites of tests to inherit: reads, ranges, listings, replaced files, retries.

In: a small cache in a folder, and `served` from the class that inherits: the same cache in its store. Out: tests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from kdpipe.cache import layout
from kdpipe.cache.stores.dispatch import open_store
from kdpipe.cache.stores.protocol import Store
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.errors import CacheDamaged, ConfigError, FileReplaced, Unreachable
from support.tiny import files_of

PART = layout.part_dir(0)
FILE = f"{PART}/{layout.SEQUENCES}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A cache in a store: its URL, how to replace a file there, and how to let some requests for bytes fail."""

    url: str
    replace: Callable[[str, bytes], object]
    fail: Callable[[int], object] | None = None


def policy(**changes: float) -> RetryPolicy:
    """Retries without pauses; their reports go to a list."""
    return RetryPolicy(wait=lambda _stop, _seconds: None, report=lambda _line: None, **changes)


class StoreContract:
    """A subclass gives the fixture `served`, and in `scheme` the row of the table that it covers."""

    scheme: ClassVar[str]

    @pytest.fixture
    def store(self, served: Served) -> Store:
        return open_store(served.url, policy())

    def test_a_file_is_read_whole(self, store: Store, path: Path) -> None:
        data = (path / FILE).read_bytes()
        assert store.read(FILE, len(data)) == bytes(store.view(FILE, len(data))) == data

    @pytest.mark.parametrize(("begin", "end"), [(0, 1), (0, None), (3, 40), (-1, None)])
    def test_a_range_of_a_file_is_read(self, store: Store, path: Path, begin: int, end: int | None) -> None:
        data = (path / FILE).read_bytes()
        first, last, _ = slice(begin, end).indices(len(data))
        assert store.read_range(FILE, first, last) == data[first:last]

    def test_sizes_are_those_of_the_files(self, store: Store, path: Path) -> None:
        for name in (layout.MANIFEST, layout.INDEX, f"{PART}/{layout.PART_RECORD}", FILE):
            assert store.size(name) == (path / name).stat().st_size

    def test_folders_are_listed(self, store: Store, path: Path) -> None:
        assert store.names(layout.PARTS) == sorted(entry.name for entry in (path / layout.PARTS).iterdir())
        assert set(store.names("")) >= {layout.MANIFEST, layout.INDEX, layout.PARTS, layout.TABLES}
        sizes = {name: (path / name).stat().st_size for name in files_of(path) if name.startswith(f"{PART}/")}
        assert store.walk(PART) == sizes

    def test_too_many_files_are_refused(self, store: Store) -> None:
        with pytest.raises(CacheDamaged):
            store.walk(PART, limit=2)

    def test_a_missing_file_has_no_size_and_cannot_be_read(self, store: Store) -> None:
        assert store.size(f"{PART}/nothing") is None
        for read in (
            lambda: store.read(f"{PART}/nothing", 10),
            lambda: store.view(f"{PART}/nothing", 10),
            lambda: store.read_range(f"{PART}/nothing", 0, 10),
        ):
            with pytest.raises(CacheDamaged):
                read()

    def test_a_file_of_another_size_is_refused(self, store: Store, path: Path) -> None:
        size = (path / FILE).stat().st_size
        for read in (
            lambda: store.read(FILE, size - 1),
            lambda: store.view(FILE, size + 1),
            lambda: store.read_range(FILE, size - 1, size + 1),
        ):
            with pytest.raises(CacheDamaged):
                read()

    def test_a_file_that_is_replaced_while_read_is_never_mixed(self, store: Store, served: Served, path: Path) -> None:
        data = (path / FILE).read_bytes()
        tag = store.tag(FILE)
        assert tag is not None
        assert store.read_range(FILE, 0, 8, tag) == data[:8]
        served.replace(FILE, bytes(255 - byte for byte in data))
        try:  # a store that is pinned to one version still reads it
            assert store.read_range(FILE, 8, 16, tag) == data[8:16]
        except FileReplaced:
            assert store.tag(FILE) != tag

    def test_an_address_without_a_cache_is_refused(self, served: Served) -> None:
        with pytest.raises(ConfigError):
            open_store(f"{served.url}/nowhere", policy())


class RemoteStoreContract(StoreContract):
    """A store with a network between: requests are retried. A subclass gives `fail` in `served`."""

    def test_a_request_that_fails_for_a_while_is_retried(self, served: Served, path: Path) -> None:
        assert served.fail is not None
        store, data = open_store(served.url, policy()), (path / FILE).read_bytes()
        served.fail(2)
        assert store.read(FILE, len(data)) == data
        served.fail(2)
        assert store.read_range(FILE, 2, 9) == data[2:9]

    def test_a_store_that_stays_away_is_unreachable(self, served: Served) -> None:
        assert served.fail is not None
        store = open_store(served.url, policy(budget=0.0))
        served.fail(1)
        with pytest.raises(Unreachable) as refused:
            store.read(FILE, 1 << 20)
        assert refused.value.is_final
