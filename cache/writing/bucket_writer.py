"""`BucketWriter`: a cache under construction behind a URL, by one worker or many.

In: a manifest, its tables and tokenizer files, then parts. Out: a sealed cache in a bucket. A bucket renames nothing:
the files of a part go into a folder named by the digest of its part.json, which is created last and never replaced.
"""

import io
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

import numpy.typing as npt

from kdpipe.cache import layout
from kdpipe.cache.catalog import committed_parts, same_manifest
from kdpipe.cache.durable.files import remove_dir
from kdpipe.cache.durable.scratch import named
from kdpipe.cache.parts.index import IndexRow, read_index, write_index
from kdpipe.cache.parts.part_files import examine_part, read_part_record
from kdpipe.cache.parts.part_writer import PartWriter
from kdpipe.cache.stores.dispatch import open_folder
from kdpipe.cache.stores.fsspec_store import RemoteFolder
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.writing.bucket_tables import BucketTables
from kdpipe.cache.writing.writer import CacheWriter, create_folder, journal_entry
from kdpipe.schemas.errors import CacheDamaged, CacheIncomplete, ConfigError
from kdpipe.schemas.manifest import FileRecord, Manifest
from kdpipe.schemas.part import PartRecord

if TYPE_CHECKING:
    from kdpipe.cache.stores.hub_store import HubFolder

Found = TypeVar("Found")


@final
class BucketWriter(CacheWriter):
    """Writes parts to a URL; make one with `create_bucket`. Its `path` is a folder that goes with it."""

    def __init__(self, place: "RemoteFolder | HubFolder", manifest: Manifest, retry_policy: RetryPolicy) -> None:
        with named("making a folder for parts on their way"):
            scratch = Path(tempfile.mkdtemp(prefix="kdpipe-out-"))
        weakref.finalize(self, remove_dir, scratch)
        create_folder(scratch / "cache", manifest)
        super().__init__(scratch / "cache", manifest)
        self._place, self._retry_policy = place, retry_policy
        self._bucket_tables = BucketTables(place, retry_policy, manifest, self.path)

    @property
    def has_tables(self) -> bool:
        """Whether the tables are there, sent by this worker or another."""
        if not self._bucket_tables.are_there():
            return False
        self._adopt_tables()
        return True

    def publish_tables(self, tables: Mapping[str, npt.NDArray[Any]]) -> None:
        """Send what was fitted, unless another worker was first: then its tables hold, all of them."""
        if not self.has_tables:
            self._bucket_tables.publish(tables)
            self._adopt_tables()

    def publish_tokenizer(self, files: Mapping[str, bytes]) -> None:
        """Send the tokenizer's files, which must be those that the manifest names."""
        super().publish_tokenizer(files)
        for name, data in files.items():
            self._create(f"{layout.TOKENIZER}/{name}", data)

    def committed(self) -> list[int]:
        """The parts that are there."""
        return self._through(lambda: committed_parts(self._place, self.manifest))

    def record(self, number: int) -> tuple[PartRecord, int]:
        """The record of a part that is there, and the bytes of all its files."""
        record, row = self._through(lambda: read_part_record(self._place, self.manifest, number, None))
        return record, row.n_bytes

    @property
    def wrote_all(self) -> bool:
        """No: what lies in a bucket is nobody's memory."""
        return False

    def missing(self) -> list[int]:
        """The parts that are still to be made."""
        there = set(self.committed())
        return [number for number in range(self.manifest.plan.n_parts) if number not in there]

    def under_way(self) -> set[int]:
        """None: a bucket does not tell what others are at; a part made twice does no harm."""
        return set()

    @contextmanager
    def part(self, number: int) -> Iterator[PartWriter]:
        """Write a part: it is sent and committed when the block ends well."""
        with super().part(number) as part:
            yield part
        self._send(number)

    def adopt(self, number: int, fill: Callable[[Path, dict[str, FileRecord]], PartRecord]) -> bool:
        """Commit a part whose files `fill` puts into a folder; whether nobody was first."""
        super().adopt(number, fill)
        return self._send(number)

    def write_journal(self, number: int, facts: Mapping[str, Any]) -> None:
        """Note who made a committed part and how fast."""
        row = self._through(lambda: read_part_record(self._place, self.manifest, number, None))[1]
        self._create(layout.journal_file(number), journal_entry(row, facts))

    def seal(self) -> str:
        """Check every part's files, write the index when all parts are there, and return the cache_id."""
        there = self.committed()
        missing = self.manifest.plan.n_parts - len(there)
        if missing:
            raise CacheIncomplete(
                f"{missing:,} of {self.manifest.plan.n_parts:,} parts are missing", hint="write them, then seal"
            )
        buffer = io.BytesIO()
        identity = write_index(buffer, self.manifest, [self._checked(number) for number in there])
        self._create(layout.INDEX, buffer.getvalue())
        self._bucket_tables.tidy()
        stated = self._through(lambda: read_index(self._place, self.manifest))[1]
        if stated != identity:
            raise CacheDamaged(
                f"{layout.INDEX} names other parts than there are", hint=f"delete {layout.INDEX} and run again"
            )
        return identity

    def _checked(self, number: int) -> IndexRow:
        _, problems = self._through(lambda: examine_part(self._place, self.manifest, number, None))
        if problems:
            raise CacheDamaged(str(problems[0]), hint=problems[0].do)
        record, row = self._through(lambda: read_part_record(self._place, self.manifest, number, None))
        if record.tables != self._tables()[0]:
            raise CacheDamaged(
                f"{layout.part_dir(number)} was made with other tables", hint="delete its folder and run again"
            )
        return row

    def _send(self, number: int) -> bool:
        """Send a part that is finished here, then its record; whether nobody was first."""
        folder = layout.part_dir(number)
        here = self.path / folder
        record = (here / layout.PART_RECORD).read_bytes()
        home = f"{folder}/{layout.attempt(record)}"
        files = sorted(path for path in here.rglob("*") if path.is_file() and path.name != layout.PART_RECORD)
        names = [f"{home}/{path.relative_to(here).as_posix()}" for path in files]
        for name, path in zip(names, files, strict=True):
            self._put(name, path)
        stated = f"{folder}/{layout.PART_RECORD}"
        is_first = self._create(stated, record)
        if not is_first and self._read(stated, layout.MAX_RECORD_BYTES) != record:
            for name in names:
                self._through(partial(self._place.remove, name))
        remove_dir(here)
        return is_first

    def _adopt_tables(self) -> None:
        """Have the tables here that are there, whoever made them."""
        self._bucket_tables.adopt()
        self._table_records = self._rank_of_id = None

    def _read(self, name: str, limit: int) -> bytes:
        return self._through(lambda: self._place.read(name, limit))

    def _put(self, name: str, path: Path) -> None:
        self._through(lambda: self._place.put(name, path))

    def _create(self, name: str, data: bytes) -> bool:
        return self._through(lambda: self._place.create(name, data))

    def _through(self, work: Callable[[], Found]) -> Found:
        return self._retry_policy.through(work)


def create_bucket(url: str, manifest: Manifest, retry_policy: RetryPolicy | None = None) -> BucketWriter:
    """Begin a cache behind a URL, or go on with the one of the same manifest; another one there is refused."""
    retry_policy = (retry_policy or RetryPolicy()).at(url)
    place = retry_policy.through(lambda: open_folder(url))
    if retry_policy.through(lambda: place.size(layout.MANIFEST)) is None:
        foreign = retry_policy.through(lambda: place.names(""))
        # Another worker may have begun the cache since the first look.
        if foreign and layout.MANIFEST not in foreign:
            raise ConfigError(
                f"{url} holds other things and no {layout.MANIFEST}: {', '.join(foreign[:3])}",
                hint="choose a new or empty place",
            )
        retry_policy.through(lambda: place.create(layout.MANIFEST, manifest.to_json()))
    return BucketWriter(place, retry_policy.through(lambda: same_manifest(place, manifest, url)), retry_policy)
