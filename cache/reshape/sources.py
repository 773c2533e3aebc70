"""The finished caches that another one is made from.

In: paths or URLs. Out: `SourceCache`s, which are only read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.ragged import Longs
from kdpipe.cache.opening import open_cache
from kdpipe.cache.parts.part_files import read_part_record
from kdpipe.cache.parts.part_reader import PartReader
from kdpipe.cache.reader import Cache
from kdpipe.cache.stores.addresses import is_url, local_path
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.manifest import FileRecord, Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.version import MINOR


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDocuments:
    """A value for each document of a part, in row order; each segment of a long document has its own.

    `numbers` count from the part's first document, `starts` are rows of the part, `lengths` numbers of rows.
    """

    numbers: Longs
    starts: Longs
    lengths: Longs
    digests: npt.NDArray[Any]

    @classmethod
    def of(cls, part: PartReader) -> "StoredDocuments":
        places = part.sequences
        firsts = np.repeat(places.row_starts[:-1], np.diff(places.document_offsets))
        starts = places.document_starts + firsts
        return cls(
            numbers=places.documents - part.record.first_document,
            starts=starts,
            lengths=np.diff(starts, append=places.row_starts[-1]),
            digests=np.ascontiguousarray(places.digests()).view("S16").reshape(-1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCache:
    """A source, opened for reading."""

    cache: Cache
    cache_id: str

    @property
    def url(self) -> str:
        return self.cache.url

    @property
    def manifest(self) -> Manifest:
        return self.cache.manifest

    def record(self, number: int) -> PartRecord:
        """The record of a part, checked against the index."""
        return read_part_record(self.cache.store, self.manifest, number, self.cache.parts[number])[0]

    def tables(self) -> dict[str, FileRecord]:
        return self.record(0).tables

    def tokenizer_files(self) -> dict[str, bytes]:
        return self.cache.tokenizer_files()

    def documents(self, number: int) -> StoredDocuments:
        return StoredDocuments.of(self.cache.part(number))


def open_source(url: str, retry_policy: RetryPolicy | None = None) -> SourceCache:
    """Open a finished cache of a format that this version of kdpipe fully supports."""
    # Parts are read one after the other: one open part is enough.
    cache = open_cache(url, max_open_parts=1, retry_policy=retry_policy)
    assert cache.cache_id is not None, "unfinished caches are refused"
    check_known(cache.manifest, url)
    return SourceCache(cache=cache, cache_id=cache.cache_id)


def check_known(manifest: Manifest, url: str) -> None:
    """Refuse a newer minor format: a cache made from it would lose what this version does not know."""
    version = manifest.format
    if version.minor > MINOR:
        raise Incompatible(
            f"{url} is of format {version.major}.{version.minor}, this version of kdpipe makes caches of "
            f"{version.major}.{MINOR} and would lose what is new",
            hint="use a newer version of kdpipe",
        )


def check_apart(out: str, *sources: SourceCache) -> None:
    """Refuse to write into a source."""
    for source in sources:
        if is_inside(out, source.url):
            raise ConfigError(f"--out {out} is inside the source {source.url}", hint="choose another folder")


def is_inside(out: str, url: str) -> bool:
    """Whether `out` is a cache's folder or inside it; links are followed."""
    if is_url(out) or is_url(url):
        return f"{out.rstrip('/')}/".startswith(f"{url.rstrip('/')}/")
    return Path(local_path(out)).resolve().is_relative_to(Path(local_path(url)).resolve())
