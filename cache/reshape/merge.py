"""`merge`: one cache from several caches of the same teacher.

In: finished caches with equal teacher, tokenizer and settings. Out: a cache with all their documents. It uses the first
cache's tables, so that cache's parts are adopted: new tables would mean to rewrite every part to save a few bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdpipe.cache.parts.tokenizer_content import TOKENIZER
from kdpipe.cache.reshape.digests import KnownDocuments, digests_of
from kdpipe.cache.reshape.rebuild import (
    Job,
    RebuildPlan,
    adopted,
    made_from,
    make,
    planned,
)
from kdpipe.cache.reshape.sources import SourceCache, open_source
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.choices import Overlap
from kdpipe.schemas.counts import counted
from kdpipe.schemas.differences import differing_settings
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.manifest import Manifest, Origin, expected_tables
from kdpipe.schemas.progress import Progress, SilentProgress, Task, running
from kdpipe.schemas.reshape import ReshapeReport

# The maximum in an entry of a manifest's history.
MAX_CACHES = 4096


def merge(
    urls: Sequence[str],
    out: str,
    overlap: Overlap = "refuse",
    progress: Progress | None = None,
    retry_policy: RetryPolicy | None = None,
) -> ReshapeReport:
    """Merge several caches; documents that occur in two of them are refused, or kept once."""
    if len(urls) < 2:
        raise ConfigError("merge needs at least two caches", hint="name two or more caches")
    if len(urls) > MAX_CACHES:
        raise ConfigError(
            f"cannot merge {len(urls):,} caches at once, the maximum is {MAX_CACHES:,}", hint="merge some of them first"
        )
    progress = progress or SilentProgress()
    with running(progress, Task(name="compare documents")):
        plan = plan_merge([open_source(url, retry_policy) for url in urls], overlap)
    return make(out, plan, progress)


def plan_merge(sources: Sequence[SourceCache], overlap: Overlap) -> RebuildPlan:
    for source in sources[1:]:
        check_alike(sources[0], source)
    jobs, overlaps = _jobs(sources)
    left_out, known = sum(merged.gone for merged in overlaps), sum(merged.known for merged in overlaps)
    if known and overlap == "refuse":
        lines = [
            f"{merged.known:,} of the {counted(merged.documents, 'document')} of {source.url} "
            f"{'is' if merged.known == 1 else 'are'} in an earlier cache"
            + (f", {merged.known - merged.gone:,} of them in part" if merged.known > merged.gone else "")
            for source, merged in zip(sources, overlaps, strict=True)
            if merged.known
        ]
        raise Incompatible("; ".join(lines), hint="keep them once with --overlap keep-first")
    ordered, plan = planned(jobs, sources[0].manifest.plan)
    origin = Origin(
        action="merge",
        caches=tuple(source.cache_id for source in sources),
        note=f"overlap {overlap}: {counted(left_out, 'document')} left out, {known - left_out:,} in part"
        if known
        else "",
    )
    manifest = made_from([source.manifest for source in sources], origin, plan)
    return RebuildPlan(
        action="merge",
        manifest=manifest,
        sources=sources,
        jobs=ordered,
        adopted=adopted(sources, ordered),
        left_out=left_out,
    )


@dataclass(slots=True, kw_only=True)
class _Overlap:
    """Documents of a cache: with tokens, with segments in an earlier cache, and completely in earlier caches."""

    documents: int = 0
    known: int = 0
    gone: int = 0


def _jobs(sources: Sequence[SourceCache]) -> tuple[list[Job], list[_Overlap]]:
    """A job for each part with new documents, and the overlap of each cache with earlier ones.

    A part whose documents have no tokens is kept unchanged.
    """
    jobs: list[Job] = []
    overlaps = []
    known = KnownDocuments()
    for number, source in enumerate(sources):
        overlap = _Overlap()
        for row in source.cache.parts:
            record, documents = source.record(row.part), source.documents(row.part)
            is_known = known.have(documents.digests)
            keep = ~is_known if is_known.any() else None
            new, some = len(np.unique(documents.numbers[~is_known])), len(np.unique(documents.numbers))
            overlap.documents += some
            overlap.known += len(np.unique(documents.numbers[is_known]))
            overlap.gone += some - new
            n_documents = record.n_documents if keep is None else new
            if n_documents:
                jobs.append(Job(source=number, part=row.part, split=record.split, n_documents=n_documents, keep=keep))
        overlaps.append(overlap)
        if number < len(sources) - 1:
            known = known.with_more(digests_of(source))
    return jobs, overlaps


def check_alike(first: SourceCache, other: SourceCache) -> None:
    """Refuse caches that cannot be merged."""
    if first.cache_id == other.cache_id:
        raise Incompatible(f"{first.url} and {other.url} are the same cache", hint="name each cache once")
    check_same_spec(first, other.manifest, other.url)
    _check_tokenizer_files(first, other)
    tables, others = first.tables(), other.tables()
    due = expected_tables(first.manifest.targets, first.manifest.hidden, first.manifest.vocabulary_size)
    differing = [t.name for t in due if t.name != "ids_by_rank" and tables[t.name] != others[t.name]]
    if differing:
        mixed = "projections fitted to other states" if differing[0].startswith("pca_") else "another output head"
        raise Incompatible(
            f"{other.url} has {mixed} than {first.url}: {', '.join(differing)}",
            hint="their numbers are not comparable: create one of the caches again with --extend",
        )


def _check_tokenizer_files(first: SourceCache, other: SourceCache) -> None:
    """Refuse different tokenizer files, unless tokenizer.json differs only in form.

    Where files differ, both fingerprints are computed from them, since a manifest may state a wrong one.
    """
    mine, theirs = first.manifest.tokenizer.files, other.manifest.tokenizer.files
    if mine == theirs:
        return
    for source in (first, other):
        source.tokenizer_files()
    differing = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if differing != [TOKENIZER] or not (mine and theirs):
        raise Incompatible(
            f"{first.url} and {other.url} have different tokenizer files: {', '.join(differing[:4])}",
            hint="create one of them again with the tokenizer of the other (--tokenizer)",
        )


def check_same_spec(first: SourceCache, manifest: Manifest, what: str) -> None:
    """Refuse another teacher, tokenizer or settings, with the differences."""
    own, theirs = first.manifest.described_as(manifest), manifest.with_hidden_size_of(first.manifest)
    differing = differing_settings(_spec(own), _spec(theirs), "{} and {}")
    if differing:
        more = " ..." if len(differing) > 5 else ""
        differences = "; ".join(differing[:5])
        raise Incompatible(
            f"{first.url} and {what} cannot be in one cache: {differences}{more}",
            hint="train on one of them, or create both with the same teacher and settings",
        )


def _spec(manifest: Manifest) -> dict[str, object]:
    """The settings that must be equal: teacher, vocabulary, and how predictions are stored."""
    include: dict[str, Any] = {
        **dict.fromkeys(("targets", "hidden", "arrays", "teacher"), True),
        "tokenizer": {"fingerprint", "vocabulary_size", "chat_template_sha256"},
        "data": {"columns", "text", "loss"},
        "plan": {"sequence_length", "packed"},
    }
    return manifest.model_dump(mode="json", include=include)
