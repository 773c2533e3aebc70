"""A cache made from parts of others: each part is adopted unchanged, or its rows are rewritten from their codes.

In: `RebuildPlan`, which depends only on the sources and the request. Out: a finished cache and a report. A run that was
killed resumes with the missing parts. One part at a time is in memory, and of it only the open sequences.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from importlib.metadata import version

import numpy as np

from kdpipe.cache.format.packing import fill
from kdpipe.cache.format.ragged import Bools, Longs
from kdpipe.cache.opening import create_cache
from kdpipe.cache.reshape.adopt import adopt_part, fetch_from, with_changes
from kdpipe.cache.reshape.coded_sequences import SequenceDocuments, documents_of, joined
from kdpipe.cache.reshape.recode import CodedPart, rank_changes
from kdpipe.cache.reshape.sources import SourceCache, StoredDocuments, check_apart
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.schemas.cache_plan import MAX_PARTS, CachePlan, SplitPlan
from kdpipe.schemas.capture_report import PartCounts
from kdpipe.schemas.choices import ReshapeAction, SplitName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import Manifest, Origin
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.progress import Progress, Task, tracked
from kdpipe.schemas.reshape import ReshapeReport
from kdpipe.schemas.strict_json import canonical, sha256_hex

MAX_TEXT = 2000
MAX_HISTORY = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A part of a source that becomes one part of the new cache: all of its documents, or those marked in `keep`."""

    source: int
    part: int
    split: SplitName
    n_documents: int
    keep: Bools | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildPlan:
    """A job for each part of the new cache, and whether that part is adopted unchanged.

    Tables and tokenizer are those of the first source.
    """

    action: ReshapeAction
    manifest: Manifest
    sources: Sequence[SourceCache]
    jobs: Sequence[Job]
    adopted: Sequence[bool]
    left_out: int


Rewrite = Callable[[CacheWriter, int, RebuildPlan], None]


def adopted(sources: Sequence[SourceCache], jobs: Sequence[Job]) -> list[bool]:
    """Which parts are adopted: nothing is left out, and their tables are equal to the first source's."""
    tables = [source.tables() for source in sources]
    return [job.keep is None and tables[job.source] == tables[0] for job in jobs]


def planned(jobs: Sequence[Job], like: CachePlan) -> tuple[list[Job], CachePlan]:
    """Jobs in the order of the new parts, split by split, and the plan of the new cache."""
    names = list(dict.fromkeys([split.name for split in like.splits] + [job.split for job in jobs]))
    ordered = sorted(jobs, key=lambda job: names.index(job.split))
    if not ordered:
        raise ConfigError("nothing is left: no document is selected", hint="use less strict conditions")
    if len(ordered) > MAX_PARTS:
        raise ConfigError(
            f"the new cache would have {len(ordered):,} parts, the maximum is {MAX_PARTS:,}", hint="select fewer parts"
        )
    splits = []
    for name in names:
        sizes = [job.n_documents for job in ordered if job.split == name]
        if sizes:
            splits.append(SplitPlan(name=name, bounds=(0, *np.cumsum(sizes).tolist())))
    plan = CachePlan(splits=tuple(splits), sequence_length=like.sequence_length, packed=like.packed)
    # Equal bounds mean that nothing was left out of the split.
    return ordered, plan.with_duplicates_of(like)


def made_from(sources: Sequence[Manifest], origin: Origin, plan: CachePlan) -> Manifest:
    """The first source's manifest with the new plan, and a history that ends with this step."""
    first = reduce(Manifest.with_hidden_size_of, sources)
    before = dict.fromkeys(origin.to_json() for source in sources for origin in source.history)
    history = (*(Origin.model_validate_json(line) for line in before), origin)
    if len(history) > MAX_HISTORY:
        raise ConfigError(
            f"the history of this cache would have {len(history):,} entries, the maximum is {MAX_HISTORY:,}",
            hint="make it from fewer caches",
        )
    named = " + ".join(dict.fromkeys(source.data.source for source in sources))
    fingerprints = [source.data.fingerprint for source in sources]
    identity = canonical({"data": fingerprints, "origin": origin.model_dump(mode="json")})
    data = first.data.model_copy(update={"source": named[:MAX_TEXT], "fingerprint": sha256_hex(identity)})
    teacher = first.teacher
    if teacher is not None:
        licenses = (source.teacher.license for source in sources if source.teacher is not None)
        teacher = teacher.model_copy(update={"license": next(filter(None, licenses), None)})
    return with_changes(first, kdpipe=version("kdpipe"), data=data, plan=plan, history=history, teacher=teacher)


def make(out: str, making: RebuildPlan, progress: Progress, rewrite: Rewrite | None = None) -> ReshapeReport:
    """Write the missing parts and seal the cache; `rewrite` writes the parts that are not adopted."""
    started = time.perf_counter()
    check_apart(out, *making.sources)
    first = making.sources[0]
    files = first.tokenizer_files()
    tables = {table.name: first.cache.table(table.name) for table in making.manifest.tables}
    writer = create_cache(out, making.manifest, first.cache.retry_policy)
    writer.publish_tokenizer(files)
    writer.publish_tables(tables)
    missing = writer.missing()
    task = Task.of_parts(making.action, len(making.jobs), len(making.jobs) - len(missing))
    for number in tracked(missing, progress, task):
        if making.adopted[number]:
            _adopt(writer, number, making)
        else:
            (rewrite or _rewrite)(writer, number, making)
    identity = writer.seal()
    records = [writer.record(number) for number in range(len(making.jobs))]
    return ReshapeReport(
        action=making.action,
        cache=out,
        cache_id=identity,
        sources=tuple(source.cache_id for source in making.sources),
        parts=PartCounts(planned=len(making.jobs), present=len(records), made=len(missing)),
        adopted=sum(making.adopted),
        rewritten=len(making.jobs) - sum(making.adopted),
        documents=sum(record.n_documents for record, _ in records),
        left_out=making.left_out,
        positions=sum(record.n_positions for record, _ in records),
        bytes=sum(n_bytes for _, n_bytes in records),
        seconds=time.perf_counter() - started,
    )


def _adopt(writer: CacheWriter, number: int, making: RebuildPlan) -> None:
    job = making.jobs[number]
    source = making.sources[job.source]
    adopt_part(writer, number, source.manifest, source.record(job.part), fetch_from(source.cache.store, job.part))


def _rewrite(writer: CacheWriter, number: int, making: RebuildPlan) -> None:
    job = making.jobs[number]
    source = making.sources[job.source]
    record = source.record(job.part)
    ids_by_rank = (source.cache.table("ids_by_rank"), making.sources[0].cache.table("ids_by_rank"))
    coded = CodedPart(source.cache.part(job.part), source.manifest, rank_changes(*ids_by_rank))
    with writer.part(number) as part:
        for stored in rewritten(coded, source, record, job.keep, part.planned.first_document):
            part.add_coded(stored.coded, stored.places, stored.texts)
        # Measured on a sample of all rows: unknown for a subset.
        part.fidelity = record.fidelity if job.keep is None else None
        part.scaled = record.scaled if job.keep is None else None
        part.batches_halved = record.batches_halved


def rewritten(
    coded: CodedPart, source: SourceCache, record: PartRecord, keep: Bools | None, first_document: int
) -> Iterator[SequenceDocuments]:
    """The sequences of a part; if documents are left out, the others are repacked.

    A half-empty sequence costs as much training time as a full one, and the teacher's predictions for a document do not
    depend on its neighbors.
    """
    documents = source.documents(record.part)
    numbers = first_document + _new_numbers(documents, keep, record.n_documents)
    sequences = (coded.sequence(i) for i in range(len(coded)))
    if keep is None:
        for stored in sequences:
            yield _renumbered(stored, numbers, record.first_document)
        return
    plan = source.manifest.plan
    groups = fill(documents.lengths[keep].tolist(), plan.sequence_length, plan.packed)
    of_documents = (piece for stored in sequences for piece in documents_of(stored, source.manifest))
    kept = (piece for piece, is_kept in zip(of_documents, keep.tolist(), strict=True) if is_kept)
    yield from grouped((_renumbered(piece, numbers, record.first_document) for piece in kept), groups)


def _new_numbers(documents: StoredDocuments, keep: Bools | None, n_documents: int) -> Longs:
    """The new number of every document, relative to the part's first; kept documents are numbered consecutively."""
    if keep is None:
        return np.arange(n_documents)
    stays = np.zeros(n_documents, bool)
    stays[documents.numbers[keep]] = True
    return np.cumsum(stays) - 1


def _renumbered(stored: SequenceDocuments, numbers: Longs, first_document: int) -> SequenceDocuments:
    places = stored.places
    return replace(stored, places=replace(places, documents=numbers[places.documents - first_document]))


def grouped(pieces: Iterator[SequenceDocuments], groups: Sequence[Sequence[int]]) -> Iterator[SequenceDocuments]:
    """Yield every sequence, in order, as soon as all its documents are available."""
    held: dict[int, SequenceDocuments] = {}
    turn = 0
    for number, piece in enumerate(pieces):
        held[number] = piece
        while turn < len(groups) and all(member in held for member in groups[turn]):
            yield joined([held.pop(member) for member in groups[turn]])
            turn += 1
    assert turn == len(groups), "a document was left out"
