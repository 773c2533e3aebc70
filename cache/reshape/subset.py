"""`subset`: a cache with some documents of another.

In: a finished cache and a `DocumentSelection`. Out: a cache of the documents that satisfy every condition. Parts
without omitted documents are adopted; the segments of a long document stay together.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.ragged import Bools, Longs
from kdpipe.cache.reshape.measures import check_measure, measured
from kdpipe.cache.reshape.rebuild import (
    MAX_TEXT,
    Job,
    RebuildPlan,
    adopted,
    made_from,
    make,
    planned,
)
from kdpipe.cache.reshape.sources import SourceCache, open_source
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import Manifest, Origin
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.progress import Progress, SilentProgress, Task, running
from kdpipe.schemas.reshape import DocumentSelection, ReshapeReport


@dataclass(slots=True, kw_only=True)
class _Candidates:
    """The documents of a part: which are selected so far, and their measures if there is one.

    `numbers` has the document's number for every segment.
    """

    record: PartRecord
    numbers: Longs
    wanted: Bools
    values: npt.NDArray[np.float64]


def subset(
    url: str,
    out: str,
    selection: DocumentSelection,
    progress: Progress | None = None,
    retry_policy: RetryPolicy | None = None,
) -> ReshapeReport:
    progress = progress or SilentProgress()
    with running(progress, Task(name="select documents")):
        plan = plan_subset(open_source(url, retry_policy), selection)
    return make(out, plan, progress)


def plan_subset(source: SourceCache, selection: DocumentSelection) -> RebuildPlan:
    check_selection(selection, source.manifest)
    records = [source.record(row.part) for row in source.cache.parts]
    jobs, plan = planned(_jobs(source, records, selection), source.manifest.plan)
    origin = Origin(action="subset", caches=(source.cache_id,), note=str(selection)[:MAX_TEXT])
    left_out = sum(record.n_documents for record in records) - sum(job.n_documents for job in jobs)
    manifest = made_from([source.manifest], origin, plan)
    return RebuildPlan(
        action="subset",
        manifest=manifest,
        sources=[source],
        jobs=jobs,
        adopted=adopted([source], jobs),
        left_out=left_out,
    )


def check_selection(selection: DocumentSelection, manifest: Manifest) -> None:
    """Refuse a selection that is empty or does not fit the cache."""
    splits = [split.name for split in manifest.plan.splits]
    if selection == DocumentSelection():
        raise ConfigError(
            "no selection: the new cache would equal the old one",
            hint="use --split, --parts, --documents, --where or --by",
        )
    if selection.split is not None and selection.split not in splits:
        raise ConfigError(f"no split {selection.split} in this cache", hint=f"its splits are {', '.join(splits)}")
    if selection.documents is not None and selection.split is None and len(splits) > 1:
        raise ConfigError("--documents counts within a split, and the cache has two", hint="add --split")
    for name, value in selection.where:
        _test(name, value, manifest)
    _check_bounds(selection)
    if selection.by is not None:
        check_measure(selection.by, manifest)


def _check_bounds(selection: DocumentSelection) -> None:
    shares = [share for share in (selection.lowest, selection.highest) if share is not None]
    between = selection.at_least is not None or selection.at_most is not None
    if (selection.by is None) != (not shares and not between):
        raise ConfigError(
            "--by needs one of --lowest, --highest, --at-least and --at-most, and they need --by",
            hint="use both, as in --by teacher-entropy --highest 0.5",
        )
    if len(shares) > 1 or (shares and between):
        raise ConfigError(
            "--lowest, --highest and bounds are mutually exclusive", hint="make a subset of a subset to combine them"
        )
    if shares and not 0 < shares[0] <= 1:
        raise ConfigError(f"a share of {shares[0]:g} is out of range", hint="use a number above 0 and at most 1")


def _jobs(source: SourceCache, records: list[PartRecord], selection: DocumentSelection) -> list[Job]:
    matching = [
        record
        for record in records
        if selection.split in (None, record.split) and (selection.parts is None or selection.parts.holds(record.part))
    ]
    if selection.documents is None and not selection.where and selection.by is None:
        return [
            Job(source=0, part=record.part, split=record.split, n_documents=record.n_documents) for record in matching
        ]
    candidates = [_candidates(source, record, selection) for record in matching]
    if selection.by is not None:
        _choose(candidates, selection)
    return [job for candidate in candidates if (job := _job(candidate)) is not None]


def _candidates(source: SourceCache, record: PartRecord, selection: DocumentSelection) -> _Candidates:
    """The documents of a part that satisfy all conditions except the measure."""
    documents = source.documents(record.part)
    wanted = np.zeros(record.n_documents, bool)
    wanted[documents.numbers] = True
    if selection.documents is not None:
        numbers = record.first_document + np.arange(record.n_documents)
        wanted &= np.array([selection.documents.holds(number) for number in numbers.tolist()], bool)
    for name, value in selection.where:
        holds = _test(name, value, source.manifest)
        column = source.cache.part(record.part).sequences.column(name, 0, len(documents.numbers))
        wanted[documents.numbers] &= np.array([holds(cell) for cell in column], bool)
    values = np.zeros(0)
    if selection.by is not None:
        values = measured(selection.by, source.cache.part(record.part), source.manifest)
    return _Candidates(record=record, numbers=documents.numbers, wanted=wanted, values=values)


def _test(name: str, value: str, manifest: Manifest) -> Callable[[Any], bool]:
    """Whether a column has the value of a --where option."""
    types = {column.name: column.type for column in manifest.data.columns}
    if name not in types:
        raise ConfigError(
            f"--where {name}={value}: the cache has no column {name}",
            hint=f"its columns are {', '.join(types) or 'none'}",
        )
    if types[name] == "bool":
        typed: Any = {"true": True, "false": False}.get(value)
    else:
        try:
            typed = {"string": str, "int64": int, "float64": float}[types[name]](value)
        except ValueError:
            typed = None
    if typed is None:
        raise ConfigError(f"--where {name}={value}: the column holds {types[name]}", hint="write a value of that type")
    return lambda found: bool(found == typed)


def _choose(candidates: list[_Candidates], selection: DocumentSelection) -> None:
    """Apply the measure to the documents selected so far; a document without a measure is dropped."""
    for candidate in candidates:
        candidate.wanted &= ~np.isnan(candidate.values)
    values = np.concatenate([np.zeros(0), *(candidate.values[candidate.wanted] for candidate in candidates)])
    chosen = _selected(values, selection)
    place = 0
    for candidate in candidates:
        n = int(candidate.wanted.sum())
        candidate.wanted[candidate.wanted] = chosen[place : place + n]
        place += n


def _selected(values: npt.NDArray[np.float64], selection: DocumentSelection) -> Bools:
    share = selection.lowest if selection.lowest is not None else selection.highest
    if share is None:
        low = -math.inf if selection.at_least is None else selection.at_least
        high = math.inf if selection.at_most is None else selection.at_most
        return np.asarray((values >= low) & (values <= high))
    # Stable, so that ties are resolved by document order.
    order = np.argsort(values if selection.lowest is not None else -values, kind="stable")
    chosen = np.zeros(len(values), bool)
    chosen[order[: math.ceil(share * len(values))]] = True
    return chosen


def _job(candidate: _Candidates) -> Job | None:
    keep = candidate.wanted[candidate.numbers]
    if not keep.any():
        return None
    record = candidate.record
    if keep.all():
        return Job(source=0, part=record.part, split=record.split, n_documents=record.n_documents)
    return Job(source=0, part=record.part, split=record.split, n_documents=int(candidate.wanted.sum()), keep=keep)
