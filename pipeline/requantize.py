"""Make a smaller cache from a cache, without its teacher: `kdpipe cache requantize`.

In: a finished cache and a `RequantizeSpec`. Out: a cache of the same documents in the same sequences, whose targets are
unbiased if those of the source are.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from kdpipe.cache.format.encode import CodedRows
from kdpipe.cache.format.rows import Rows, Sequence
from kdpipe.cache.parts.part_reader import PartReader
from kdpipe.cache.reshape.adopt import with_changes
from kdpipe.cache.reshape.coded_sequences import SequenceDocuments
from kdpipe.cache.reshape.rebuild import Job, RebuildPlan, made_from, make
from kdpipe.cache.reshape.recode import CodedPart
from kdpipe.cache.reshape.sources import SourceCache, open_source
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.pipeline.requantization.requantize_rows import RowRequantizer, resample_keys
from kdpipe.pipeline.requantization.requantize_spec import requantized_manifest
from kdpipe.pipeline.requantization.requantize_states import StateTargets
from kdpipe.schemas.differences import differing_keys
from kdpipe.schemas.manifest import Manifest, Origin
from kdpipe.schemas.progress import Progress, SilentProgress, Task, running
from kdpipe.schemas.reshape import RequantizeSpec, ReshapeReport

MAX_NOTE = 2000
Change = Callable[[PartReader, int, SequenceDocuments], CodedRows]


def requantize(
    url: str,
    out: str,
    spec: RequantizeSpec,
    progress: Progress | None = None,
    retry_policy: RetryPolicy | None = None,
) -> ReshapeReport:
    """Requantize a cache, or resume an interrupted run."""
    progress = progress or SilentProgress()
    with running(progress, Task(name="read cache")):
        source = open_source(url, retry_policy)
        manifest = plan_requantization(source, spec)
        records = [source.record(row.part) for row in source.cache.parts]
    plan = RebuildPlan(
        action="requantize",
        manifest=manifest,
        sources=[source],
        jobs=[Job(source=0, part=r.part, split=r.split, n_documents=r.n_documents) for r in records],
        # If only arrays are dropped, the files of the others are reused.
        adopted=[manifest.targets == source.manifest.targets] * len(records),
        left_out=0,
    )
    change = _change(source, manifest)

    def rewrite(writer: CacheWriter, number: int, plan: RebuildPlan) -> None:
        part, record = source.cache.part(number), records[number]
        coded = CodedPart(part, source.manifest, None)
        with writer.part(number) as new_part:
            for i in range(len(coded)):
                stored = coded.sequence(i)
                new_part.add_coded(change(part, i, stored), stored.places, stored.texts)
            # The measured fidelity does not apply to resampled ids.
            same = manifest.targets.keep == source.manifest.targets.keep
            new_part.fidelity = record.fidelity if same else None
            new_part.scaled = record.scaled
            new_part.batches_halved = record.batches_halved

    return make(out, plan, progress, rewrite)


def plan_requantization(source: SourceCache, spec: RequantizeSpec) -> Manifest:
    """The manifest of the new cache, with the changes in its history."""
    reduced = requantized_manifest(source.manifest, spec)
    changed = differing_keys(_keeps(source.manifest), _keeps(reduced), form="{} to {}")
    note = "; ".join(changed)
    origin = Origin(action="requantize", caches=(source.cache_id,), note=note[:MAX_NOTE])
    base = made_from([source.manifest], origin, source.manifest.plan)
    changes = {name: getattr(reduced, name) for name in ("targets", "hidden", "arrays", "tables", "seed")}
    return with_changes(base, **changes)


def _keeps(manifest: Manifest) -> dict[str, object]:
    return {**manifest.targets.model_dump(mode="json"), "hidden": [v.layer for v in manifest.hidden.rows]}


def _change(source: SourceCache, manifest: Manifest) -> Change:
    """The function that requantizes a sequence."""
    if source.manifest.targets.keep.complete and not manifest.targets.keep.complete:
        tables = {table.name: source.cache.table(table.name) for table in source.manifest.tables}
        states = StateTargets(source.manifest, manifest, tables)

        def of_states(part: PartReader, number: int, stored: SequenceDocuments) -> CodedRows:
            rows = part.rows(number, number + 1)
            if not manifest.hidden.rows:
                rows = replace(rows, hidden={})
            keys_R = _keys(source, manifest, stored, rows)
            return states.rows(stored.coded, _sequence(part, number, stored, rows, manifest), rows, keys_R)

        return of_states
    requantizer = RowRequantizer(source.manifest, manifest)

    def of_entries(part: PartReader, number: int, stored: SequenceDocuments) -> CodedRows:
        rows = part.rows(number, number + 1, hidden=False)
        return requantizer.rows(stored.coded, rows, _keys(source, manifest, stored, rows))

    return of_entries


def _keys(
    source: SourceCache, manifest: Manifest, stored: SequenceDocuments, rows: Rows
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    lengths = np.diff(rows.document_starts, append=len(rows))
    return resample_keys(source.cache_id, manifest.seed, stored.places.digests, lengths)


def _sequence(part: PartReader, number: int, stored: SequenceDocuments, rows: Rows, manifest: Manifest) -> Sequence:
    """A stored sequence in the form in which `cache-teacher` writes one."""
    places = stored.places
    return Sequence(
        tokens=rows.tokens,
        loss_mask=rows.loss_mask,
        token_bytes=part.token_bytes(number),
        document_starts=places.document_starts,
        documents=places.documents,
        digests=places.digests,
        columns=places.columns,
        pooled=part.sequences.pooled(*part.documents(number)) if manifest.hidden.pooled else {},
        texts=stored.texts,
    )
