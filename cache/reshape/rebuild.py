"""A cache made from parts of others: each is adopted as it is, or its rows are written anew from their codes.

In: `RebuildPlan`, which follows from the sources and what was asked for alone. Out: a finished cache and a report.
Killed and run again, it goes on with the parts that are not there; one part at a time is in memory, and of it what its
open sequences hold.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from importlib.metadata import version
from typing import Protocol

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
from kdpipe.schemas.capture_report import PartsMade
from kdpipe.schemas.choices import ReshapeAction, SplitName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import Manifest, Origin
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.reshape import ReshapeReport
from kdpipe.schemas.strict_json import canonical, sha256_hex

MAX_TEXT = 2000
MAX_HISTORY = 1000


class RebuildProgress(Protocol):
    """Whoever follows: `begin` once, then a part after the other."""

    def begin(self, n_parts: int, n_done: int) -> None:
        """Work starts: parts in all, and those that were there before."""
        ...

    def part_done(self, number: int) -> None:
        """One more part is there."""
        ...


class SilentRebuildProgress:
    """Nobody follows."""

    def begin(self, n_parts: int, n_done: int) -> None:
        """Nothing."""

    def part_done(self, number: int) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A part of a source, for one part of the new cache: whole, or those of its documents that `keep` is true for."""

    source: int
    part: int
    split: SplitName
    n_documents: int
    keep: Bools | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildPlan:
    """What is made of what: a job for each part of the plan, and whether that part keeps its bytes.

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
    """Which parts keep their bytes: nothing is left out of them, and all their tables are equal to the first's."""
    tables = [source.tables() for source in sources]
    return [job.keep is None and tables[job.source] == tables[0] for job in jobs]


def planned(jobs: Sequence[Job], like: CachePlan) -> tuple[list[Job], CachePlan]:
    """Jobs in the order of their parts, split by split, and the plan that they lead to."""
    names = list(dict.fromkeys([split.name for split in like.splits] + [job.split for job in jobs]))
    ordered = sorted(jobs, key=lambda job: names.index(job.split))
    if not ordered:
        raise ConfigError("nothing is left: no document is chosen", hint="choose less strictly")
    if len(ordered) > MAX_PARTS:
        raise ConfigError(
            f"the new cache would have {len(ordered):,} parts, {MAX_PARTS:,} are allowed", hint="choose fewer parts"
        )
    splits = []
    for name in names:
        sizes = [job.n_documents for job in ordered if job.split == name]
        if sizes:
            splits.append(SplitPlan(name=name, bounds=(0, *np.cumsum(sizes).tolist())))
    plan = CachePlan(splits=tuple(splits), sequence_length=like.sequence_length, packed=like.packed)
    # A split of equal bounds is one of which nothing was left out.
    return ordered, plan.with_duplicates_of(like)


def made_from(sources: Sequence[Manifest], origin: Origin, plan: CachePlan) -> Manifest:
    """The first source's manifest with a plan of its own, and a history that ends with what is done now."""
    first = reduce(Manifest.with_hidden_size_of, sources)
    before = dict.fromkeys(origin.to_json() for source in sources for origin in source.history)
    history = (*(Origin.model_validate_json(line) for line in before), origin)
    if len(history) > MAX_HISTORY:
        raise ConfigError(
            f"the history of this cache would have {len(history):,} entries, {MAX_HISTORY:,} are allowed",
            hint="make it again from fewer",
        )
    named = " + ".join(dict.fromkeys(source.data.source for source in sources))
    fingerprints = [source.data.fingerprint for source in sources]
    made = canonical({"data": fingerprints, "origin": origin.model_dump(mode="json")})
    data = first.data.model_copy(update={"source": named[:MAX_TEXT], "fingerprint": sha256_hex(made)})
    teacher = first.teacher
    if teacher is not None:
        licenses = (source.teacher.license for source in sources if source.teacher is not None)
        teacher = teacher.model_copy(update={"license": next(filter(None, licenses), None)})
    return with_changes(first, kdpipe=version("kdpipe"), data=data, plan=plan, history=history, teacher=teacher)


def make(out: str, making: RebuildPlan, told: RebuildProgress, rewrite: Rewrite | None = None) -> ReshapeReport:
    """Make the parts that are not there yet, and complete the cache; `rewrite` makes those that keep no bytes."""
    started = time.perf_counter()
    check_apart(out, *making.sources)
    first = making.sources[0]
    files = first.tokenizer_files()
    tables = {table.name: first.cache.table(table.name) for table in making.manifest.tables}
    writer = create_cache(out, making.manifest, first.cache.retry_policy)
    writer.publish_tokenizer(files)
    writer.publish_tables(tables)
    missing = writer.missing()
    told.begin(len(making.jobs), len(making.jobs) - len(missing))
    for number in missing:
        if making.adopted[number]:
            _adopt(writer, number, making)
        else:
            (rewrite or _rewrite)(writer, number, making)
        told.part_done(number)
    identity = writer.seal()
    records = [writer.record(number) for number in range(len(making.jobs))]
    return ReshapeReport(
        action=making.action,
        cache=out,
        cache_id=identity,
        sources=tuple(source.cache_id for source in making.sources),
        parts=PartsMade(planned=len(making.jobs), present=len(records), made=len(missing)),
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
        # What was measured on a sample of all rows is not known of some of them.
        part.fidelity = record.fidelity if job.keep is None else None
        part.scaled = record.scaled if job.keep is None else None
        part.batches_halved = record.batches_halved


def rewritten(
    coded: CodedPart, source: SourceCache, record: PartRecord, keep: Bools | None, first_document: int
) -> Iterator[SequenceDocuments]:
    """The sequences of a part as they were; once something is left out of it, what is left is packed anew.

    A sequence half empty costs a step of training as much as a full one, and nothing that the teacher said of a
    document depends on those beside it.
    """
    documents = source.documents(record.part)
    numbers = first_document + _new_numbers(documents, keep, record.n_documents)
    found = (coded.sequence(i) for i in range(len(coded)))
    if keep is None:
        for stored in found:
            yield _renumbered(stored, numbers, record.first_document)
        return
    plan = source.manifest.plan
    groups = fill(documents.lengths[keep].tolist(), plan.sequence_length, plan.packed)
    each = (piece for stored in found for piece in documents_of(stored, source.manifest))
    kept = (piece for piece, is_kept in zip(each, keep.tolist(), strict=True) if is_kept)
    yield from grouped((_renumbered(piece, numbers, record.first_document) for piece in kept), groups)


def _new_numbers(documents: StoredDocuments, keep: Bools | None, n_documents: int) -> Longs:
    """The new number of every document, counted from the part's first: those that are kept stand close."""
    if keep is None:
        return np.arange(n_documents)
    stays = np.zeros(n_documents, bool)
    stays[documents.numbers[keep]] = True
    return np.cumsum(stays) - 1


def _renumbered(stored: SequenceDocuments, numbers: Longs, first_document: int) -> SequenceDocuments:
    places = stored.places
    return replace(stored, places=replace(places, documents=numbers[places.documents - first_document]))


def grouped(pieces: Iterator[SequenceDocuments], groups: Sequence[Sequence[int]]) -> Iterator[SequenceDocuments]:
    """Give out every sequence as soon as all its documents have come, in order."""
    held: dict[int, SequenceDocuments] = {}
    turn = 0
    for number, piece in enumerate(pieces):
        held[number] = piece
        while turn < len(groups) and all(member in held for member in groups[turn]):
            yield joined([held.pop(member) for member in groups[turn]])
            turn += 1
    assert turn == len(groups), "a document was left out"
