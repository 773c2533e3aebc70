"""Make a cache from the files of another tool: `kdpipe cache import`.

In: the settings of the command. Out: a cache of kind `imported`, and a report that lists the information the source
lacks. The source is read twice: `survey.py` checks all rows before anything is written, then parts are made one by one.
Re-running the command resumes with the missing parts.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt

from kdpipe.cache.inspect import inspect_cache
from kdpipe.cache.opening import create_cache
from kdpipe.cache.verify.first_use import record_written
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.pipeline.documents.data_sources import is_of_hub
from kdpipe.pipeline.documents.part_plan import make_plan, rows_per_part
from kdpipe.pipeline.documents.row_files import RowFile
from kdpipe.pipeline.interop import Format, FormatInfo, open_format
from kdpipe.pipeline.interop.imported_sequences import packed, token_sizes
from kdpipe.pipeline.interop.source_files import check_place, source_files
from kdpipe.pipeline.interop.survey import Read, Repairs, SourceSurvey, row_parser, rows_again, survey_rows
from kdpipe.pipeline.interop.validated_row import MAX_MASS, ValidatedRow, validate_row
from kdpipe.pipeline.tokenizers.cached_tokenizer import with_reloadable_files
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, load_tokenizer
from kdpipe.schemas import manifest
from kdpipe.schemas.arrays import default_arrays
from kdpipe.schemas.cache_plan import CachePlan, PlannedPart
from kdpipe.schemas.choices import SplitName, StatedTail
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.interop import ImportReport, ImportSettings
from kdpipe.schemas.manifest import Manifest, expected_tables
from kdpipe.schemas.part import ScaledRows
from kdpipe.schemas.progress import Progress, Task, TaskUpdate, running
from kdpipe.schemas.target_kinds import Imported
from kdpipe.schemas.targets import HiddenSpec, TargetSpec

# A part's documents are in memory while it is packed: 130 MB at 8 bytes per entry.
MAX_ENTRIES_PER_PART = 1 << 24
SPLITS: tuple[SplitName, ...] = ("train", "validation")


def import_cache(settings: ImportSettings, progress: Progress) -> ImportReport:
    """Import a source, or resume an interrupted import."""
    started = time.perf_counter()
    check_place(settings.source, settings.out)
    tokenizer = with_reloadable_files(load_tokenizer(settings.tokenizer, trust_remote_code=settings.trust_remote_code))
    source = open_source(settings, tokenizer.record.vocabulary_size)
    n = len(source.files)
    files = "1 file" if n == 1 else f"{n:,} files"
    progress.message(f"source     {files} of {settings.source_format}: {source.form.info.alignment}")
    with running(progress, Task(name="read rows")):
        survey = source.survey(settings)
    if not survey.n_positions:
        raise ConfigError("no row has a position to train on", hint="check the masks and labels of the source")
    progress.message(
        f"rows       {len(survey.sizes):,} with {survey.n_positions:,} positions, up to {survey.longest:,} tokens"
    )
    # If sums of stored probabilities are far above 1, others are too low by as much.
    if source.info.tail == "rest" and settings.tail is None and survey.repairs.largest_excess > MAX_MASS - 1:
        source = replace(source, tail_lost=True)
    _warn_of_repairs(survey.repairs, source, progress)
    cache = create_cache(settings.out, make_manifest(settings, source.info, survey, tokenizer))
    cache.publish_tokenizer(tokenizer.files)
    cache.publish_tables({"ids_by_rank": np.argsort(-survey.token_counts, kind="stable").astype(np.uint32)})
    n_parts = _make_parts(cache, source, survey, token_sizes(tokenizer), progress)
    cache.seal()
    record_written(cache, progress)
    return _report(settings, source.info, survey, n_parts, time.perf_counter() - started)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSource:
    """Files with their format, read as `ValidatedRow`s; `tail_lost` if their sums contradict the format's tail."""

    files: list[RowFile]
    form: Format
    n_ids: int
    tail_lost: bool = False

    @property
    def info(self) -> FormatInfo:
        return replace(self.form.info, tail="unknown") if self.tail_lost else self.form.info

    def read(self, number: int) -> Read:
        """The parser of one file's rows."""
        rest = self.info.tail == "rest"
        name = self.files[number].name
        return row_parser(name, lambda columns: validate_row(self.form.read(columns), self.n_ids, rest_is_tail=rest))

    def survey(self, settings: ImportSettings) -> SourceSurvey:
        """Read and check all rows."""
        return survey_rows(self.files, self.read, self.n_ids, settings.limit, settings.val_fraction)

    def rows(self, survey: SourceSurvey, places: npt.NDArray[np.int64]) -> Iterator[ValidatedRow]:
        """Read the rows at some indices again."""
        return rows_again(self.files, survey, places, self.read)


def open_source(settings: ImportSettings, n_ids: int) -> ImportSource:
    """Find the files of a source and open its format on them."""
    files = source_files(settings.source, settings.data_split, settings.max_row_bytes)
    return ImportSource(files=files, form=open_format(settings, files), n_ids=n_ids)


def make_manifest(
    settings: ImportSettings, info: FormatInfo, survey: SourceSurvey, tokenizer: LoadedTokenizer
) -> Manifest:
    """The manifest; equal settings and sources give equal bytes on every machine."""
    known = info.tail_given or info.tail == "rest"
    keep = Imported(source=settings.source_format, max_entries=info.k or survey.most_ids, tail_known=known)
    targets = TargetSpec(keep=keep, temperatures=(), entropy=False)
    n_ids = tokenizer.record.vocabulary_size
    return Manifest(
        kdpipe=version("kdpipe"),
        seed=0,
        teacher=manifest.TeacherRecord(
            name=settings.teacher_name or "unknown",
            revision=settings.teacher_revision,
            dtype="unknown",
            license=settings.teacher_license,
            full_distribution=False,
        ),
        tokenizer=tokenizer.record,
        data=manifest.Data(
            fingerprint=survey.fingerprint,
            source=f"{settings.source_format}: {_source_name(settings)}",
            train_on="all" if survey.trains_all else "assistant",
        ),
        plan=make_import_plan(survey, keep.max_entries, settings.pack),
        targets=targets,
        tables=expected_tables(targets, HiddenSpec(), n_ids),
        arrays=default_arrays(targets, HiddenSpec(), n_ids),
        history=(manifest.Origin(action="import", caches=(), note=note(settings, info, survey.repairs)),),
    )


def _source_name(settings: ImportSettings) -> str:
    """The source without its parent folders, which differ between machines."""
    return settings.source if is_of_hub(settings.source) else Path(settings.source).name


def make_import_plan(survey: SourceSurvey, most_ids: int, pack: bool) -> CachePlan:
    """Parts as planned by `cache-teacher`, with fewer rows if rows have many ids; no document is cut."""
    sizes = {split: survey.sizes[survey.rows_of(split)] for split in SPLITS}
    rows = min(rows_per_part(float(survey.sizes.sum())), MAX_ENTRIES_PER_PART // most_ids)
    return make_plan(sizes, 1.0, survey.longest, pack, int(rows), duplicates=survey.duplicates)


def unknown(settings: ImportSettings, info: FormatInfo) -> tuple[str, ...]:
    """The information that the source lacks."""
    names = ["teacher"] if settings.teacher_name is None else []
    names += ["tail mass"] if info.tail == "unknown" and not info.tail_given else []
    names += ["loss mask (all tokens are trained on)"] if not info.has_loss_mask else []
    names += ["teacher temperature (assumed 1)", "normalizers at other temperatures", "entropy"]
    return (*names, "log p of next tokens that are not stored", "hidden states", "text")


def note(settings: ImportSettings, info: FormatInfo, repairs: Repairs) -> str:
    """The note on the source in the manifest's history."""
    tails: dict[StatedTail, str] = {"rest": "1 minus the mass of stored ids", "unknown": "unknown"}
    lines = [f"from {settings.source_format}: {info.alignment}"]
    lines += [f"tail: {'stated by the source' if info.tail_given else tails[info.tail]}"]
    lines += [f"missing in the source: {', '.join(unknown(settings, info))}"]
    return "; ".join([*lines, *_repair_lines(repairs)])


def _repair_lines(repairs: Repairs) -> list[str]:
    lines = {
        "padding ids dropped": repairs.n_padding,
        "positions without targets, not trained on": repairs.n_without_targets,
        f"rows with a sum above 1 (by up to {repairs.largest_excess:.3g}), scaled to 1": repairs.n_scaled,
    }
    return [f"{n:,} {what}" for what, n in lines.items() if n]


def _warn_of_repairs(repairs: Repairs, source: ImportSource, progress: Progress) -> None:
    for line in _repair_lines(repairs):
        progress.warning(line)
    if source.tail_lost:
        progress.warning(
            "tail set to unknown: sums of probabilities exceed 1 by too much (--tail rest uses them anyway)"
        )


def _make_parts(
    cache: CacheWriter, source: ImportSource, survey: SourceSurvey, sizes: npt.NDArray[np.uint32], progress: Progress
) -> int:
    """Write the missing parts; return their number."""
    plan, missing = cache.manifest.plan, cache.missing()
    n_done, n_positions = plan.n_parts - len(missing), 0
    task = Task.of_parts("import", plan.n_parts, n_done)
    progress.begin(task)
    for run in _runs([plan.part(number) for number in missing]):
        places = survey.rows_of(run[0].split)
        # Consecutive parts share one stream, so that no Parquet row group is decoded once per part.
        stream = source.rows(survey, places[run[0].first_document : run[-1].first_document + run[-1].n_documents])
        for planned in run:
            rows = list(islice(stream, planned.n_documents))
            with cache.part(planned.number) as part:
                for sequence, block in packed(rows, planned, cache.manifest, sizes):
                    part.add(sequence, block)
                part.scaled = _scaled_rows(rows)
            n_done, n_positions = n_done + 1, n_positions + cache.record(planned.number)[0].n_positions
            progress.update(TaskUpdate(done=n_done, facts={"positions": n_positions}))
    progress.finish(task)
    return len(missing)


def _scaled_rows(rows: list[ValidatedRow]) -> ScaledRows | None:
    excess = np.concatenate([row.excess for row in rows])
    if not len(excess):
        return None
    return ScaledRows(n_rows=len(excess), largest_excess=float(excess.max()), median_excess=float(np.median(excess)))


def _runs(parts: list[PlannedPart]) -> list[list[PlannedPart]]:
    """Consecutive parts of one split, grouped."""
    runs: list[list[PlannedPart]] = []
    for part in parts:
        if runs and (runs[-1][-1].number + 1, runs[-1][-1].split) == (part.number, part.split):
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def _report(
    settings: ImportSettings, info: FormatInfo, survey: SourceSurvey, n_parts: int, seconds: float
) -> ImportReport:
    summary = inspect_cache(settings.out)
    entries = summary.entries_per_position
    assert summary.cache_id is not None and entries is not None, "the cache was sealed"
    return ImportReport(
        cache=settings.out,
        cache_id=summary.cache_id,
        source_format=settings.source_format,
        documents=summary.documents,
        positions=summary.positions,
        parts=summary.parts.planned,
        parts_made=n_parts,
        bytes=summary.bytes,
        entries_per_position=entries.mean,
        tail="given" if info.tail_given else info.tail,
        unknown=unknown(settings, info),
        padding_entries=survey.repairs.n_padding,
        rows_without_targets=survey.repairs.n_without_targets,
        scaled_rows=survey.repairs.n_scaled,
        scaled=summary.scaled,
        seconds=seconds,
    )
