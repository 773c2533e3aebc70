"""--extend: a new cache that begins with the parts of a finished one, and goes on with other documents.

In: the old cache, and the manifest of the new documents alone. Out: the manifest of both, and the old parts in place.
The old cache is only read: its parts are linked or copied, its tables hold for all, and documents that it has are left
out of the new ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from kdpipe.cache.reshape.adopt import adopt_part, fetch_from, with_changes
from kdpipe.cache.reshape.digests import KnownDocuments, digests_of
from kdpipe.cache.reshape.merge import check_same_spec
from kdpipe.cache.reshape.rebuild import MAX_TEXT, made_from
from kdpipe.cache.reshape.sources import SourceCache, check_apart, open_source
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.pipeline.capture.part_queue import WorkerShard
from kdpipe.schemas.cache_plan import CachePlan, SplitPlan
from kdpipe.schemas.capture_settings import CaptureSettings, TeacherSettings
from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.manifest import Manifest, Origin
from kdpipe.schemas.strict_json import canonical, sha256_hex


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """A finished cache that is extended: the documents that it has, and how many each of its splits has."""

    source: SourceCache
    known: KnownDocuments
    documents: Mapping[SplitName, int]

    def extended(self, manifest: Manifest, teacher: TeacherSettings) -> Manifest:
        """The manifest of both, given that of the new documents alone; another teacher or spec is refused.

        The teacher is called what the old cache calls it, unless a name or license is given.
        """
        check_same_spec(self.source, manifest, "the new documents")
        old = self.source.manifest
        origin = Origin(action="extend", caches=(self.source.cache_id,))
        made = made_from([old.with_hidden_size_of(manifest)], origin, _behind(old.plan, manifest.plan))
        both = canonical({"documents": manifest.data.fingerprint, "extended": self.source.cache_id})
        named = " + ".join(dict.fromkeys((old.data.source, manifest.data.source)))
        data = made.data.model_copy(update={"fingerprint": sha256_hex(both), "source": named[:MAX_TEXT]})
        given = {"name": teacher.display_name, "license": teacher.license}
        described = made.teacher
        if described is not None:
            described = described.model_copy(update={key: value for key, value in given.items() if value is not None})
        return with_changes(made, data=data, seed=manifest.seed, teacher=described)

    def adopt(self, cache: CacheWriter, shard: WorkerShard) -> None:
        """Put the old parts that are not there yet in their places: a worker's own share, then what others left."""
        numbers = _places(self.source.manifest.plan, cache.manifest.plan)
        own = {number for number in numbers if number % shard.count == shard.index}
        for share in (own, numbers.keys() - own):
            for number in sorted(share & set(cache.missing())):
                record = self.source.record(numbers[number])
                fetch = fetch_from(self.source.cache.store, record.part)
                adopt_part(cache, number, self.source.manifest, record, fetch)


def open_extension(settings: CaptureSettings, retry_policy: RetryPolicy) -> Extension | None:
    """The cache that is extended, where one is named."""
    if settings.extend is None:
        return None
    source = open_source(settings.extend, retry_policy)
    if settings.out is not None:
        check_apart(settings.out, source)
    documents = {split.name: split.bounds[-1] for split in source.manifest.plan.splits}
    return Extension(source=source, known=KnownDocuments(digests_of(source)), documents=documents)


def _behind(old: CachePlan, new: CachePlan) -> CachePlan:
    """The parts of both, split by split: new documents are counted on from the old ones."""
    first = {split.name: split.bounds for split in old.splits}
    more = {split.name: split.bounds for split in new.splits}
    splits = []
    for name in dict.fromkeys([*first, *more]):
        bounds = first.get(name, (0,))
        splits.append(SplitPlan(name=name, bounds=(*bounds, *(bounds[-1] + end for end in more.get(name, (0,))[1:]))))
    return CachePlan(splits=tuple(splits), sequence_length=old.sequence_length, packed=old.packed)


def _places(old: CachePlan, both: CachePlan) -> dict[int, int]:
    """The number of every old part by its number in the new plan."""
    sizes = {split.name: len(split.bounds) - 1 for split in old.splits}
    found: dict[int, int] = {}
    number = 0
    for split in both.splits:
        for i in range(sizes.get(split.name, 0)):
            found[number + i] = len(found)
        number += len(split.bounds) - 1
    return found
