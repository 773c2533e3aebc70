"""`inspect_cache`: a summary of a cache and its sizes.

In: a path or URL, finished or not. Out: a `CacheSummary`. Only records are read, never data.
"""

import os
from collections.abc import Iterable, Mapping
from itertools import accumulate

from kdpipe.cache import layout
from kdpipe.cache.catalog import committed_parts, load_manifest
from kdpipe.cache.format.statistics import entry_quantiles
from kdpipe.cache.parts.index import read_index
from kdpipe.cache.parts.part_files import read_part_record
from kdpipe.cache.quality import by_temperature, fidelity
from kdpipe.cache.stores.dispatch import open_store
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.stores.protocol import Store
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.summary import (
    CacheSizes,
    CacheSummary,
    EntriesSummary,
    PartsSummary,
    ScaledSummary,
    SplitSummary,
    TokenizerSummary,
)

TOKEN_COLUMNS = ("token", "loss_mask", "token_bytes")
COUNT_COLUMNS = ("n_exact", "n_draws")
# Always reported, as 0 where a cache has none of them.
BYTE_GROUPS = ("id", "logprob", "scalars", "hidden", "sequences", "text")


def inspect_cache(url: str | os.PathLike[str], retry_policy: RetryPolicy | None = None) -> CacheSummary:
    """Sum a cache up."""
    store = open_store(url, retry_policy)
    manifest = load_manifest(store)
    complete = store.size(layout.INDEX) is not None
    rows, identity = read_index(store, manifest) if complete else ([], None)
    by_part = {row.part: row for row in rows}
    numbers = sorted(by_part) if complete else committed_parts(store, manifest)
    read = [read_part_record(store, manifest, number, by_part.get(number)) for number in numbers]
    records = [record for record, _ in read]
    sizes = _sizes(store, manifest, {row.part: row.n_bytes for _, row in read})
    positions = sum(record.n_positions for record in records)
    measured, tail_mass = fidelity(records, manifest.targets), _mean(records, positions, "tail_mass")
    return CacheSummary(
        url=store.url,
        cache_id=identity,
        format=f"{manifest.format.major}.{manifest.format.minor}",
        complete=complete,
        kdpipe=manifest.kdpipe,
        teacher=manifest.teacher,
        tokenizer=TokenizerSummary(
            fingerprint=manifest.tokenizer.fingerprint,
            vocabulary_size=manifest.vocabulary_size,
            files=tuple(sorted(manifest.tokenizer.files)),
        ),
        data=manifest.data,
        targets=manifest.targets,
        hidden=manifest.hidden,
        history=manifest.history,
        splits=_splits(manifest, records),
        parts=PartsSummary(planned=manifest.plan.n_parts, present=len(records)),
        documents=sum(record.n_documents for record in records),
        sequences=sum(record.n_sequences for record in records),
        rows=sum(record.n_rows for record in records),
        positions=positions,
        entries_per_position=_entries(manifest, records),
        entropy_nats=_mean(records, positions, "entropy_nats"),
        label_nats=_mean(records, positions, "label_nats"),
        tail_mass=tail_mass,
        bytes=sizes.total,
        shared_bytes=sizes.total - sizes.parts,
        sizes=sizes,
        bytes_per_position=_bytes_per_position([(record, row.n_bytes) for record, row in read], positions),
        temperatures=manifest.targets.temperatures,
        by_temperature=by_temperature(manifest.targets, measured, tail_mass),
        fidelity=measured,
        scaled=_scaled(records),
    )


def _sizes(store: Store, manifest: Manifest, parts: Mapping[int, int]) -> CacheSizes:
    """Bytes of the parts, and of everything that is there once."""

    def together(names: Iterable[str]) -> int:
        return sum(store.size(name) or 0 for name in names)

    return CacheSizes(
        parts=sum(parts.values()),
        tokenizer=together(f"{layout.TOKENIZER}/{name}" for name in manifest.tokenizer.files),
        tables=together(layout.table_file(table.name) for table in manifest.tables),
        records=together((layout.MANIFEST, layout.INDEX)),
        # A request for each part of a cache behind a URL is not worth it.
        journal=together(map(layout.journal_file, parts)) if isinstance(store, LocalStore) else None,
    )


def _splits(manifest: Manifest, records: list[PartRecord]) -> dict[str, SplitSummary]:
    splits: dict[str, SplitSummary] = {}
    for split in manifest.plan.splits:
        own = [record for record in records if record.split == split.name]
        splits[split.name] = SplitSummary(
            parts=len(own),
            documents=sum(record.n_documents for record in own),
            sequences=sum(record.n_sequences for record in own),
            rows=sum(record.n_rows for record in own),
            positions=sum(record.n_positions for record in own),
        )
    return splits


def _entries(manifest: Manifest, records: list[PartRecord]) -> EntriesSummary | None:
    if not manifest.targets.has_entries or not records:
        return None
    return EntriesSummary(**entry_quantiles(record.statistics for record in records))


def _mean(records: list[PartRecord], positions: int, name: str) -> float | None:
    sums = [getattr(record.statistics, name) for record in records]
    return sum(sums) / positions if positions and None not in sums else None


def _bytes_per_position(parts: Iterable[tuple[PartRecord, int]], positions: int) -> dict[str, float]:
    """Where the bytes of the parts go; overhead is checksums' index, zarr.json and part.json."""
    sums = dict.fromkeys(BYTE_GROUPS, 0)
    for record, n_bytes in parts:
        of_part = _bytes_of_part(record)
        of_part["overhead"] = n_bytes - sum(of_part.values())
        for name, size in of_part.items():
            sums[name] = sums.get(name, 0) + size
    total = sum(sums.values()) - sums["text"]
    return {name: size / max(positions, 1) for name, size in {"total": total, **sums}.items()}


def _bytes_of_part(record: PartRecord) -> dict[str, int]:
    groups = {"sequences": record.files[layout.SEQUENCES].bytes}
    for name, size in record.column_bytes.items():
        group = "sequences" if name in TOKEN_COLUMNS else "counts" if name in COUNT_COLUMNS else "scalars"
        groups[group] = groups.get(group, 0) + size
    for name in layout.ARRAY_NAMES[1:]:
        if layout.array_metadata(name) in record.files:
            shard = record.files.get(layout.array_shard(name))
            groups[name] = shard.bytes if shard else 0
    if layout.TEXT in record.files:
        groups["text"] = record.files[layout.TEXT].bytes
    return groups


def _scaled(records: list[PartRecord]) -> ScaledSummary | None:
    """The parts' rows that were scaled to 1."""
    known = sorted((r.scaled for r in records if r.scaled is not None), key=lambda scaled: scaled.median_excess)
    if not known:
        return None
    total = sum(part.n_rows for part in known)
    reached = accumulate(part.n_rows for part in known)
    median = next(part.median_excess for part, n in zip(known, reached, strict=True) if 2 * n >= total)
    return ScaledSummary(rows=total, largest_excess=max(part.largest_excess for part in known), median_excess=median)
