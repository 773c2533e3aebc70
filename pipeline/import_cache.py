"""A cache from what another tool has stored: `kdpipe cache import`.

In: the settings of the command. Out: a cache of kind `imported`, and a report that says what the source could not tell.
Everything is read twice: `survey.py` checks all rows before anything is written, then parts are made one by one, each
from the rows that belong to it. Run again, it goes on with the parts that are missing.
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
from kdpipe.cache.verify.first_use import remember_written
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.pipeline.documents.data_sources import is_of_hub
from kdpipe.pipeline.documents.part_plan import make_plan, rows_of_a_part
from kdpipe.pipeline.documents.row_files import RowFile
from kdpipe.pipeline.interop import Format, FormatFacts, open_format
from kdpipe.pipeline.interop.imported_sequences import packed, token_sizes
from kdpipe.pipeline.interop.source_files import check_place, source_files
from kdpipe.pipeline.interop.survey import Read, Repairs, SourceSurvey, reader, rows_again, survey_rows
from kdpipe.pipeline.interop.validated_row import MOST_MASS, ValidatedRow, validate_row
from kdpipe.pipeline.tokenizers.cached_tokenizer import with_reloadable_files
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, load_tokenizer
from kdpipe.pipeline.watch import Watch
from kdpipe.schemas import manifest
from kdpipe.schemas.arrays import default_arrays
from kdpipe.schemas.cache_plan import CachePlan, PlannedPart
from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.interop import ImportReport, ImportSettings
from kdpipe.schemas.manifest import Manifest, expected_tables
from kdpipe.schemas.part import ScaledRows
from kdpipe.schemas.targets import HiddenSpec, Imported, TargetSpec

# The documents of a part are held in memory while it is packed: with 8 bytes an entry about 130 MB.
MOST_ENTRIES_A_PART = 1 << 24
SPLITS: tuple[SplitName, ...] = ("train", "validation")


def import_cache(settings: ImportSettings, watch: Watch) -> ImportReport:
    """Do what is left to do of an import."""
    started = time.perf_counter()
    check_place(settings.source, settings.out)
    tokenizer = with_reloadable_files(load_tokenizer(settings.tokenizer, trust_remote_code=settings.trust_remote_code))
    source = open_source(settings, tokenizer.record.vocabulary_size)
    n = len(source.files)
    files = "1 file" if n == 1 else f"{n:,} files"
    watch.say(f"source     {files} of {settings.source_format}: {source.form.facts.alignment}")
    survey = source.survey(settings)
    if not survey.n_positions:
        raise ConfigError("nothing is to be learnt of any row", hint="look at the masks and labels of the source")
    watch.say(
        f"rows       {len(survey.sizes):,} with {survey.n_positions:,} positions, up to {survey.longest:,} tokens"
    )
    source = settled(source, settings, survey.repairs)
    _tell_repairs(survey.repairs, source, watch)
    stated = make_manifest(settings, source.facts, survey, tokenizer)
    cache = create_cache(settings.out, stated)
    cache.publish_tokenizer(tokenizer.files)
    cache.publish_tables({"ids_by_rank": np.argsort(-survey.token_counts, kind="stable").astype(np.uint32)})
    made = _make_parts(cache, source, survey, token_sizes(tokenizer), watch)
    cache.seal()
    remember_written(cache, watch)
    return _report(settings, source.facts, survey, made, time.perf_counter() - started)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSource:
    """Files with their format: rows of them as `ValidatedRow`; `tail_lost` once their sums have shown that no tail is
    known.
    """

    files: list[RowFile]
    form: Format
    n_ids: int
    tail_lost: bool = False

    @property
    def facts(self) -> FormatFacts:
        """What is known of the format and its rows."""
        return replace(self.form.facts, tail="unknown") if self.tail_lost else self.form.facts

    def read(self, number: int) -> Read:
        """A function that reads rows of one file."""
        rest = self.facts.tail == "rest"
        name = self.files[number].name
        return reader(name, lambda columns: validate_row(self.form.read(columns), self.n_ids, rest_is_tail=rest))

    def survey(self, settings: ImportSettings) -> SourceSurvey:
        """All rows, read and checked."""
        return survey_rows(self.files, self.read, self.n_ids, settings.limit, settings.val_fraction)

    def rows(self, survey: SourceSurvey, places: npt.NDArray[np.int64]) -> Iterator[ValidatedRow]:
        """Some rows once more."""
        return rows_again(self.files, survey, places, self.read)


def open_source(settings: ImportSettings, n_ids: int) -> ImportSource:
    """The files of a source, and their format."""
    files = source_files(settings.source, settings.data_split, settings.max_row_bytes)
    return ImportSource(files=files, form=open_format(settings, files), n_ids=n_ids)


def settled(source: ImportSource, settings: ImportSettings, repairs: Repairs) -> ImportSource:
    """The tail is unknown where rows add up to far more than 1, unless --tail says otherwise."""
    loses = source.facts.tail == "rest" and settings.tail is None and repairs.largest_excess > MOST_MASS - 1
    return replace(source, tail_lost=loses)


def make_manifest(
    settings: ImportSettings, facts: FormatFacts, survey: SourceSurvey, tokenizer: LoadedTokenizer
) -> Manifest:
    """The manifest; equal settings and sources give equal bytes on every machine."""
    known = facts.tail_given or facts.tail == "rest"
    keep = Imported(source=settings.source_format, max_entries=facts.k or survey.most_ids, tail_known=known)
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
            source=f"{settings.source_format}: {_named(settings)}",
            train_on="all" if survey.trains_all else "assistant",
        ),
        plan=make_import_plan(survey, keep.max_entries, settings.pack),
        targets=targets,
        tables=expected_tables(targets, HiddenSpec(), n_ids),
        arrays=default_arrays(targets, HiddenSpec(), n_ids),
        history=(manifest.Origin(action="import", caches=(), note=note(settings, facts, survey.repairs)),),
    )


def _named(settings: ImportSettings) -> str:
    """A source without the folders it lies in, which are another's on every machine."""
    return settings.source if is_of_hub(settings.source) else Path(settings.source).name


def make_import_plan(survey: SourceSurvey, most_ids: int, pack: bool) -> CachePlan:
    """Parts as stage one plans them, of fewer rows where rows have many ids; no document is cut."""
    sizes = {split: survey.sizes[survey.rows_of(split)] for split in SPLITS}
    rows = min(rows_of_a_part(float(survey.sizes.sum())), MOST_ENTRIES_A_PART // most_ids)
    return make_plan(sizes, 1.0, survey.longest, pack, int(rows), duplicates=survey.duplicates)


def unknown(settings: ImportSettings, facts: FormatFacts) -> tuple[str, ...]:
    """What a source of this kind does not tell."""
    found = ["the teacher"] if settings.teacher_name is None else []
    found += ["the mass of ids that are not kept"] if facts.tail == "unknown" and not facts.tail_given else []
    found += ["which tokens are learnt (all are)"] if not facts.has_loss_mask else []
    found += ["at which temperature it spoke (1 is believed)", "normalizers at other temperatures", "entropy"]
    return (*found, "log p of next tokens that are not kept", "hidden states", "text")


def note(settings: ImportSettings, facts: FormatFacts, repairs: Repairs) -> str:
    """What the manifest says of where the cache came from."""
    tail = (
        "stated by the source" if facts.tail_given else {"rest": "what kept ids leave of 1"}.get(facts.tail, "unknown")
    )
    lines = [f"from {settings.source_format}: {facts.alignment}", f"tail {tail}"]
    lines += [f"not told by the source: {', '.join(unknown(settings, facts))}"]
    return "; ".join([*lines, *_repaired(repairs)])


def _repaired(repairs: Repairs) -> list[str]:
    words = {
        "ids without probability left out": repairs.n_padding,
        "rows without targets, which are not learnt": repairs.n_without_targets,
        f"rows that added up to more than 1 (by at most {repairs.largest_excess:.3g}), scaled to 1": repairs.n_scaled,
    }
    return [f"{n:,} {what}" for what, n in words.items() if n]


def _tell_repairs(repairs: Repairs, source: ImportSource, watch: Watch) -> None:
    for what in _repaired(repairs):
        watch.warn(what)
    if source.tail_lost:
        watch.warn("the codec is too coarse to tell the mass of ids that are not kept (--tail rest believes it)")


def _make_parts(
    cache: CacheWriter, source: ImportSource, survey: SourceSurvey, sizes: npt.NDArray[np.uint32], watch: Watch
) -> int:
    """Make the parts that are missing; how many that were."""
    plan, missing = cache.manifest.plan, cache.missing()
    watch.begin(plan.n_parts, plan.n_parts - len(missing), survey.n_positions)
    for run in _runs([plan.part(number) for number in missing]):
        places = survey.rows_of(run[0].split)
        # One stream for parts behind each other: a part that began anew would unpack its row group from the start.
        stream = source.rows(survey, places[run[0].first_document : run[-1].first_document + run[-1].n_documents])
        for planned in run:
            began = time.perf_counter()
            rows = list(islice(stream, planned.n_documents))
            with cache.part(planned.number) as part:
                for sequence, block in packed(rows, planned, cache.manifest, sizes):
                    part.add(sequence, block)
                part.scaled = _scaled(rows)
            record, n_bytes = cache.record(planned.number)
            watch.part_done(planned.number, record.n_positions, n_bytes, time.perf_counter() - began)
    return len(missing)


def _scaled(rows: list[ValidatedRow]) -> ScaledRows | None:
    """The rows of a part that were scaled to 1."""
    excess = np.concatenate([row.excess for row in rows])
    if not len(excess):
        return None
    return ScaledRows(n_rows=len(excess), largest_excess=float(excess.max()), median_excess=float(np.median(excess)))


def _runs(parts: list[PlannedPart]) -> list[list[PlannedPart]]:
    """Parts of one split behind each other, together."""
    runs: list[list[PlannedPart]] = []
    for part in parts:
        if runs and (runs[-1][-1].number + 1, runs[-1][-1].split) == (part.number, part.split):
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def _report(
    settings: ImportSettings, facts: FormatFacts, survey: SourceSurvey, made: int, seconds: float
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
        parts_made=made,
        bytes=summary.bytes,
        entries_per_position=entries.mean,
        tail="given" if facts.tail_given else facts.tail,
        unknown=unknown(settings, facts),
        padding_entries=survey.repairs.n_padding,
        rows_without_targets=survey.repairs.n_without_targets,
        scaled_rows=survey.repairs.n_scaled,
        scaled=summary.scaled,
        seconds=seconds,
    )
