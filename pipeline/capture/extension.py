"""--extend: a new cache that starts with the parts of a complete one and continues with other documents.

In: the source cache, and the manifest of the new documents alone. Out: the manifest of both, and the source's parts in
place. The source is only read: its parts are linked or copied, its tables are used, and documents that it has are
skipped in the new data.
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
    """A complete cache to extend: digests of its documents, and how many each of its splits has."""

    source: SourceCache
    known: KnownDocuments
    documents: Mapping[SplitName, int]

    def extended(self, manifest: Manifest, teacher: TeacherSettings) -> Manifest:
        """The manifest of both, given that of the new documents alone; another teacher or spec is refused.

        The teacher keeps its name and license of the source, unless others are given.
        """
        check_same_spec(self.source, manifest, "the new documents")
        old = self.source.manifest
        origin = Origin(action="extend", caches=(self.source.cache_id,))
        merged = made_from([old.with_hidden_size_of(manifest)], origin, _concatenated(old.plan, manifest.plan))
        both = canonical({"documents": manifest.data.fingerprint, "extended": self.source.cache_id})
        source_names = " + ".join(dict.fromkeys((old.data.source, manifest.data.source)))
        data = merged.data.model_copy(update={"fingerprint": sha256_hex(both), "source": source_names[:MAX_TEXT]})
        given = {"name": teacher.display_name, "license": teacher.license}
        described = merged.teacher
        if described is not None:
            described = described.model_copy(update={key: value for key, value in given.items() if value is not None})
        return with_changes(merged, data=data, seed=manifest.seed, teacher=described)

    def adopt(self, cache: CacheWriter, shard: WorkerShard) -> None:
        """Copy the missing parts of the source: the worker's own share first, then those of others."""
        numbers = _source_numbers(self.source.manifest.plan, cache.manifest.plan)
        own = {number for number in numbers if number % shard.count == shard.index}
        for share in (own, numbers.keys() - own):
            for number in sorted(share & set(cache.missing())):
                record = self.source.record(numbers[number])
                fetch = fetch_from(self.source.cache.store, record.part)
                adopt_part(cache, number, self.source.manifest, record, fetch)


def open_extension(settings: CaptureSettings, retry_policy: RetryPolicy) -> Extension | None:
    """The cache of --extend; None without it."""
    if settings.extend is None:
        return None
    source = open_source(settings.extend, retry_policy)
    if settings.out is not None:
        check_apart(settings.out, source)
    documents = {split.name: split.bounds[-1] for split in source.manifest.plan.splits}
    return Extension(source=source, known=KnownDocuments(digests_of(source)), documents=documents)


def _concatenated(old: CachePlan, new: CachePlan) -> CachePlan:
    """The parts of both, split by split; new documents are numbered after the old ones."""
    first = {split.name: split.bounds for split in old.splits}
    more = {split.name: split.bounds for split in new.splits}
    splits = []
    for name in dict.fromkeys([*first, *more]):
        bounds = first.get(name, (0,))
        splits.append(SplitPlan(name=name, bounds=(*bounds, *(bounds[-1] + end for end in more.get(name, (0,))[1:]))))
    return CachePlan(splits=tuple(splits), sequence_length=old.sequence_length, packed=old.packed)


def _source_numbers(old: CachePlan, both: CachePlan) -> dict[int, int]:
    """The number of every source part by its number in the new plan."""
    sizes = {split.name: len(split.bounds) - 1 for split in old.splits}
    numbers: dict[int, int] = {}
    number = 0
    for split in both.splits:
        for i in range(sizes.get(split.name, 0)):
            numbers[number + i] = len(numbers)
        number += len(split.bounds) - 1
    return numbers
