"""Compare a cache with its teacher: some of its documents are predicted again.

In: a cache and a teacher. Out: an `AgainstReport` with the differences beside the teacher's own noise: how far apart
its predictions for a document read alone and read in a batch are, which no cache can be below.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from kdpipe.cache import layout
from kdpipe.cache.format.blocks import block_of, cut
from kdpipe.cache.format.ragged import next_tokens
from kdpipe.cache.format.rows import Block, Bools, Rows
from kdpipe.cache.opening import open_cache
from kdpipe.cache.parts.tokenizer_content import TOKENIZER
from kdpipe.cache.reader import Cache
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.pipeline.audit.draw_check import DrawCounts, count_draws, listing
from kdpipe.pipeline.audit.teacher_config import teacher_info_differences
from kdpipe.pipeline.audit.teacher_differences import (
    DocumentPredictions,
    Doubles,
    codec_bounds,
    comparable,
    differences,
    relative_distances,
)
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.teachers import Teacher, TeacherBackend, TeacherInfo, recorded_backend
from kdpipe.pipeline.teachers.batching import batches
from kdpipe.pipeline.tokenizers.cached_tokenizer import load_cached_tokenizer
from kdpipe.pipeline.tokenizers.tokenizer_difference import FOREIGN_NOTE, difference_from_own
from kdpipe.schemas.arrays import log_z_column
from kdpipe.schemas.capture_settings import MachineSettings
from kdpipe.schemas.counts import counted
from kdpipe.schemas.errors import CacheDamaged, ConfigError
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.progress import Progress, Task, TaskUpdate, running
from kdpipe.schemas.settings import build, from_flag
from kdpipe.schemas.targets import CAPTURED, TargetSpec
from kdpipe.schemas.verify_report import AgainstReport, NatsDifference, Problem

# What a number type alone puts between two machines, on the mean, in nats: bfloat16 logits round by 2^-9 of their size.
FLOOR_NATS = {"float32": 1e-3, "float64": 1e-3, "float16": 1e-2, "bfloat16": 5e-2, "quantized": 5e-2, "unknown": 5e-2}
TIMES_NOISE = 4.0
# Of the size of a document's states: int8 in groups of n moves them by sqrt(n) / 254, of 128 by 0.045.
APART = 0.1
TOGETHER_TOKENS = 8192
SEED = 20260101


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledDocument:
    """A document of the cache: where it is, its tokens and its targets."""

    part: int
    name: str
    segment: Segment
    block: Block
    cached: DocumentPredictions


def verify_against(
    url: str,
    teacher: str,
    sample: int,
    progress: Progress,
    *,
    trusted: bool = False,
    devices: str = "auto",
    retry_policy: RetryPolicy | None = None,
) -> AgainstReport:
    """Compare a random sample of documents, from all parts in turn; `trusted` allows the teacher's own code to run."""
    cache = open_cache(url, retry_policy=retry_policy)
    stated = cache.manifest.teacher
    if stated is None or cache.manifest.targets.keep.kind not in CAPTURED:
        raise ConfigError(f"{url} has no predictions of a teacher that can be run again", hint="omit --against")
    chosen = list(_sample(cache, sample))
    if not chosen:
        raise ConfigError(f"{url} has no position to compare", hint="omit --against")
    machine = build(MachineSettings, from_flag(MachineSettings, "--devices", "devices", devices))
    # As the teacher ran: its number type, its quantized weights, the Hub's revision if its name is the same.
    backend = recorded_backend(teacher, stated, machine, trusted=trusted)
    if problems := [*_config_problems(backend.describe(), cache.manifest), *_tokenizer_problems(cache, backend)]:
        return _not_run(teacher, problems)
    with running(progress, Task(name="load teacher")):
        model = backend.load(cache.manifest.vocabulary_size)
    progress.message(f"re-reading {counted(len(chosen), 'document')} of {url} with {teacher}")
    targets, segments = cache.manifest.targets, [document.segment for document in chosen]
    one_each = [[segment] for segment in segments]
    alone = _predict(model, cache, targets, one_each, progress)
    grouped = batches(segments, TOGETHER_TOKENS)
    batched = _predict(model, cache, targets, [[segments[i] for i in group] for group in grouped], progress)
    together = dict(zip([i for group in grouped for i in group], batched, strict=True))
    bounds = codec_bounds(cache.manifest)
    noise = [differences(alone[i], together[i], {}) for i in range(len(chosen))]
    from_cache = [differences(document.cached, alone[i], bounds) for i, document in enumerate(chosen)]
    allowed = TIMES_NOISE * _nats(noise).mean_nats + FLOOR_NATS[stated.dtype]
    problems = [
        _problem(
            document.part,
            f"{document.name} differs from the teacher's predictions by {difference.mean():.3g} nats on average, "
            f"noise explains at most {allowed:.2g}",
        )
        for document, difference in zip(chosen, from_cache, strict=True)
        if len(difference) and not difference.mean() <= allowed
    ]
    problems += _hidden_problems(chosen, alone, together)
    if targets.has_draws:
        only_ids = TargetSpec(keep=listing(cache.manifest.vocabulary_size), temperatures=(), entropy=False)
        listed = _predict(model, cache, only_ids, one_each, progress)
        problems += _wrong_draws(chosen, alone, listed, cache.manifest)
    return AgainstReport(
        ok=not problems,
        teacher=teacher,
        documents=len(chosen),
        positions=sum(int(document.segment.loss_mask.sum()) for document in chosen),
        noise=_nats(noise),
        difference=_nats(from_cache),
        bound_nats=allowed,
        problems=tuple(problems),
    )


def _hidden_problems(
    chosen: Sequence[SampledDocument], alone: Sequence[DocumentPredictions], together: Mapping[int, DocumentPredictions]
) -> Iterator[Problem]:
    """Hidden states that differ by more than the noise between batch shapes."""
    for i, document in enumerate(chosen):
        noises = relative_distances(together[i], alone[i])
        for name, share in relative_distances(document.cached, alone[i]).items():
            if not share <= APART + TIMES_NOISE * noises[name]:
                what = f"{name} of {document.name} differs from the teacher's by {share:.0%} of its norm"
                yield _problem(document.part, what)


def _config_problems(info: TeacherInfo, manifest: Manifest) -> Iterator[Problem]:
    do = "give the model that is the teacher of the cache: see `kdpipe cache inspect`"
    for difference in teacher_info_differences(info, manifest):
        yield Problem(part=None, file=layout.MANIFEST, what=f"the teacher is another model: {difference}", do=do)


def _tokenizer_problems(cache: Cache, backend: TeacherBackend) -> Iterator[Problem]:
    """Damage of the cache's tokenizer, and differences from the teacher's."""
    stated = cache.manifest.teacher
    file, do = f"{layout.TOKENIZER}/{TOKENIZER}", "do not use this copy: get the cache again from its source"
    try:
        _, kept = load_cached_tokenizer(cache)
    except CacheDamaged as error:
        yield Problem(part=None, file=file, what=error.message, do=do)
        return
    if kept is None or stated is None or FOREIGN_NOTE in stated.notes:
        return
    if (what := difference_from_own(backend, kept)) is not None:
        yield Problem(part=None, file=file, what=f"it is not the teacher's tokenizer: {what}", do=do)


def _not_run(teacher: str, problems: Sequence[Problem]) -> AgainstReport:
    """The report about a teacher that is wrong by its config or tokenizer, and was not loaded."""
    return AgainstReport(
        ok=False,
        teacher=teacher,
        documents=0,
        positions=0,
        noise=None,
        difference=None,
        bound_nats=None,
        problems=tuple(problems),
    )


def _problem(part: int, what: str) -> Problem:
    do = "if it was made by this teacher at this revision, delete the part and run cache-teacher again"
    return Problem(part=part, file=f"parts/{part:05d}", what=what, do=do)


def _wrong_draws(
    chosen: Sequence[SampledDocument],
    alone: Sequence[DocumentPredictions],
    listed: Sequence[DocumentPredictions],
    manifest: Manifest,
) -> Iterator[Problem]:
    """Parts whose draws are not from the teacher's tails."""
    temperature = manifest.targets.target_temperature
    counts: dict[int, DrawCounts] = {}
    for document, own, top_ids in zip(chosen, alone, listed, strict=True):
        log_z = None
        if temperature != 1:
            log_z = np.zeros(len(document.segment))
            log_z[document.segment.loss_mask] = own.scalars[log_z_column(temperature)]
        more = count_draws(document.block, top_ids, log_z, manifest)
        counts[document.part] = counts.get(document.part, DrawCounts()) + more
    for part, draws in sorted(counts.items()):
        if not draws.is_plausible:
            yield _problem(
                part,
                f"{draws.listed:,.0f} of {draws.n:,.0f} draws are among the teacher's most probable ids, about "
                f"{draws.expected:,.0f} were expected",
            )


def _sample(cache: Cache, n: int) -> Iterator[SampledDocument]:
    """Random documents with positions, each at most once: one of each part, then another of each."""
    generator = np.random.default_rng(SEED)
    firsts = np.cumsum([0, *cache.sequences_by_part]).tolist()
    sources = [
        _documents_of_part(cache, range(firsts[place], firsts[place + 1]), int(generator.integers(1 << 62)))
        for place in generator.permutation(len(cache.parts)).tolist()
    ]
    n_taken = 0
    while sources:
        for source in list(sources):
            document = next(source, None)
            if document is None:
                sources.remove(source)
                continue
            yield document
            n_taken += 1
            if n_taken == n:
                return


def _documents_of_part(cache: Cache, sequences: range, seed: int) -> Iterator[SampledDocument]:
    """The documents of a part in random order: one of each sequence, then another of each."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(sequences)).tolist()
    for turn in count():
        left = []
        for i in order:
            rows = cache[sequences[i]]
            ends = np.append(rows.document_starts[1:], len(rows))
            places = [slice(*place) for place in zip(rows.document_starts.tolist(), ends.tolist(), strict=True)]
            trained = [k for k, place in enumerate(places) if rows.loss_mask[place].any()]
            if turn + 1 < len(trained):
                left.append(i)
            if turn < len(trained):
                k = int(np.random.default_rng((seed, i)).permutation(trained)[turn])
                block = list(cut(_labels_once(rows), ends))[k]
                part = cache.locate(sequences[i])[0].record
                pooled = {layer: vectors[k] for layer, vectors in cache.pooled(sequences[i]).items()}
                cached = comparable(block, rows.loss_mask[places[k]], cache.manifest.vocabulary_size, pooled)
                yield _sampled(rows, places[k], int(rows.documents[k]), part, block, cached)
        order = left
        if not order:
            return


def _labels_once(rows: Rows) -> Block:
    """The targets of rows, without the log p of next tokens that are exact ids: those are compared as exact ids."""
    block = block_of(rows)
    if block.label_logprob is None:
        return block
    known, _ = next_tokens(rows.tokens, block.ids, block.n_exact.astype(np.int64), block.n_draws.astype(np.int64))
    labels = block.label_logprob.copy()
    labels[known] = np.nan
    return replace(block, label_logprob=labels)


def _sampled(
    rows: Rows, place: slice, document: int, part: PartRecord, block: Block, cached: DocumentPredictions
) -> SampledDocument:
    mask = rows.loss_mask[place]
    segment = Segment(
        split=part.split,
        document=document,
        offset=0,
        tokens=rows.tokens[place],
        loss_mask=mask,
        token_bytes=np.zeros(len(mask), np.uint32),
        digest=b"",
    )
    name = f"document {document:,} of {part.split}"
    return SampledDocument(part=part.part, name=name, segment=segment, block=block, cached=cached)


def _predict(
    teacher: Teacher, cache: Cache, targets: TargetSpec, grouped: Sequence[Sequence[Segment]], progress: Progress
) -> list[DocumentPredictions]:
    manifest = cache.manifest
    request = TargetRequest(
        targets=targets,
        hidden=manifest.hidden,
        vocabulary_size=manifest.vocabulary_size,
        seed=manifest.seed,
        # Copies: torch does not take memory-mapped arrays.
        tables={table.name: cache.table(table.name).copy() for table in manifest.tables if "pca_" in table.name},
        starts_word=_starts_word(cache) if targets.boundary else None,
    )
    predictions: list[DocumentPredictions] = []
    task = Task(name="run teacher", unit="documents", total=sum(map(len, grouped)))
    with running(progress, task):
        for group, result in zip(grouped, teacher.predict(grouped, request), strict=True):
            blocks = cut(result.block, np.cumsum([len(segment) for segment in group]))
            for i, (segment, block) in enumerate(zip(group, blocks, strict=True)):
                pooled = {layer: vectors[i] for layer, vectors in result.pooled.items()}
                predictions.append(comparable(block, segment.loss_mask, manifest.vocabulary_size, pooled))
            progress.update(TaskUpdate(done=len(predictions)))
    return predictions


def _starts_word(cache: Cache) -> Bools:
    """Which ids start a new word, by the tokenizer in the cache."""
    _, tokenizer = load_cached_tokenizer(cache)
    if tokenizer is None:
        raise ConfigError(f"{cache.url} has no tokenizer to find word boundaries with", hint="omit --against")
    return tokenizer.starts_word


def _nats(differences: Sequence[Doubles]) -> NatsDifference:
    nats = np.concatenate(differences) if differences else np.zeros(0)
    if not len(nats):
        return NatsDifference(max_nats=0.0, mean_nats=0.0)
    return NatsDifference(max_nats=float(nats.max()), mean_nats=float(nats.mean()))
