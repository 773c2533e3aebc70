"""Is a cache what its teacher says? Some of its documents are read again, and held against it.

In: a cache and a teacher. Out: an `AgainstReport`, with the teacher's own noise beside the differences. The noise is
what the same teacher says of the same documents read alone and read together: nobody can ask a cache to come nearer
than that.
"""

from collections.abc import Iterator, Sequence
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
from kdpipe.pipeline.audit.draw_check import DrawCounts, drawn, listing
from kdpipe.pipeline.audit.teacher_config import differences_of_shape
from kdpipe.pipeline.audit.teacher_differences import (
    DocumentPredictions,
    Doubles,
    apart,
    codec_bounds,
    differences,
    said,
)
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.models import devices
from kdpipe.pipeline.models.model_info import ModelInfo
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.teachers import Teacher
from kdpipe.pipeline.teachers.batching import batches
from kdpipe.pipeline.teachers.load_teacher import asked_again, load
from kdpipe.pipeline.teachers.local_teacher import LocalTeacher
from kdpipe.pipeline.teachers.shape import teacher_shape
from kdpipe.pipeline.tokenizers.cached_tokenizer import load_cached_tokenizer
from kdpipe.pipeline.tokenizers.tokenizer_difference import FOREIGN_NOTE, difference_from_own
from kdpipe.pipeline.watch import Watch
from kdpipe.schemas.arrays import log_z_column
from kdpipe.schemas.capture_settings import TeacherSettings
from kdpipe.schemas.counts import counted
from kdpipe.schemas.errors import CacheDamaged, ConfigError
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.targets import TargetSpec
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
    """A document of the cache: where it is, its tokens, and what the cache says of it."""

    part: int
    name: str
    piece: Segment
    block: Block
    cached: DocumentPredictions


def verify_against(
    url: str, teacher: str, sample: int, watch: Watch, *, trusted: bool = False, retry_policy: RetryPolicy | None = None
) -> AgainstReport:
    """Compare a sample of documents, at random from every part of the cache in turn; `trusted` lets a teacher's own
    code run."""
    cache = open_cache(url, retry_policy=retry_policy)
    stated = cache.manifest.teacher
    if stated is None or cache.manifest.targets.keep.kind == "imported":
        raise ConfigError(f"{url} keeps nothing that a teacher of transformers has said", hint="leave --against out")
    chosen = list(_sample(cache, sample))
    if not chosen:
        raise ConfigError(f"{url} has no position that could be compared", hint="leave --against out")
    # As the teacher ran: its number type, its quantized weights, the hub's revision if its name is the same.
    settings = asked_again(teacher, stated).model_copy(update={"trust_remote_code": trusted})
    shape = teacher_shape(settings)
    if problems := [*_of_shape(shape, cache.manifest), *_of_tokenizer(cache, settings)]:
        return _not_run(teacher, problems)
    local = LocalTeacher(load(settings, shape, devices.choose("auto")), cache.manifest.vocabulary_size)
    watch.say(f"{counted(len(chosen), 'document')} of {url}, read again by {teacher}")
    targets, pieces = cache.manifest.targets, [one.piece for one in chosen]
    each_alone = [[piece] for piece in pieces]
    alone = _answers(local, cache, targets, each_alone)
    grouped = batches(pieces, TOGETHER_TOKENS)
    answered = _answers(local, cache, targets, [[pieces[i] for i in group] for group in grouped])
    together = dict(zip([i for group in grouped for i in group], answered, strict=True))
    bounds = codec_bounds(cache.manifest)
    noise = [differences(alone[i], together[i], {}) for i in range(len(chosen))]
    found = [differences(one.cached, alone[i], bounds) for i, one in enumerate(chosen)]
    allowed = TIMES_NOISE * _nats(noise).mean_nats + FLOOR_NATS[stated.dtype]
    problems = [
        _problem(
            one.part,
            f"{one.name} differs from what the teacher says by {difference.mean():.3g} nats on the mean, at most "
            f"{allowed:.2g} are explained",
        )
        for one, difference in zip(chosen, found, strict=True)
        if len(difference) and not difference.mean() <= allowed
    ]
    for i, one in enumerate(chosen):
        noises = apart(together[i], alone[i])
        problems += [
            _problem(one.part, f"{name} of {one.name} differs from the teacher's by {share:.0%} of its size")
            for name, share in apart(one.cached, alone[i]).items()
            if not share <= APART + TIMES_NOISE * noises[name]
        ]
    if targets.has_draws:
        only_ids = TargetSpec(keep=listing(cache.manifest.vocabulary_size), temperatures=(), entropy=False)
        listed = _answers(local, cache, only_ids, each_alone)
        problems += _wrong_draws(chosen, alone, listed, cache.manifest)
    return AgainstReport(
        ok=not problems,
        teacher=teacher,
        documents=len(chosen),
        positions=sum(int(one.piece.loss_mask.sum()) for one in chosen),
        noise=_nats(noise),
        difference=_nats(found),
        bound_nats=allowed,
        problems=tuple(problems),
    )


def _of_shape(shape: ModelInfo, manifest: Manifest) -> Iterator[Problem]:
    """What in a model's shape says that it is another teacher."""
    do = "give the model that the cache names as its teacher (kdpipe cache inspect)"
    for why in differences_of_shape(shape, manifest):
        yield Problem(part=None, file=layout.MANIFEST, what=f"it is of another teacher: {why}", do=do)


def _of_tokenizer(cache: Cache, settings: TeacherSettings) -> Iterator[Problem]:
    """What in the tokenizer that the cache keeps says that it is not the teacher's."""
    stated = cache.manifest.teacher
    file, do = f"{layout.TOKENIZER}/{TOKENIZER}", "do not use this copy: get the cache again from whoever made it"
    try:
        _, kept = load_cached_tokenizer(cache)
    except CacheDamaged as error:
        yield Problem(part=None, file=file, what=error.message, do=do)
        return
    if kept is None or stated is None or FOREIGN_NOTE in stated.notes:
        return
    if (what := difference_from_own(settings, kept)) is not None:
        yield Problem(part=None, file=file, what=f"it is another tokenizer than the teacher's own: {what}", do=do)


def _not_run(teacher: str, problems: Sequence[Problem]) -> AgainstReport:
    """The answer about a model that need not be run to see that something is wrong."""
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
    do = "was it made by this teacher, at this revision? if so, delete the part and run cache-teacher again"
    return Problem(part=part, file=f"parts/{part:05d}", what=what, do=do)


def _wrong_draws(
    chosen: Sequence[SampledDocument],
    alone: Sequence[DocumentPredictions],
    listed: Sequence[DocumentPredictions],
    manifest: Manifest,
) -> Iterator[Problem]:
    """Parts whose draws are from elsewhere than the teacher's tails."""
    temperature = manifest.targets.target_temperature
    found: dict[int, DrawCounts] = {}
    for one, said_alone, said_listed in zip(chosen, alone, listed, strict=True):
        log_z = None
        if temperature != 1:
            log_z = np.zeros(len(one.piece))
            log_z[one.piece.loss_mask] = said_alone.scalars[log_z_column(temperature)]
        found[one.part] = found.get(one.part, DrawCounts()) + drawn(one.block, said_listed, log_z, manifest)
    for part, draws in sorted(found.items()):
        if not draws.could_be:
            yield _problem(
                part,
                f"of {draws.n:,.0f} draws {draws.listed:,.0f} are among the teacher's most probable ids, about "
                f"{draws.expected:,.0f} should be",
            )


def _sample(cache: Cache, n: int) -> Iterator[SampledDocument]:
    """Documents with positions, at random, none twice: one of each part, then another of each."""
    generator = np.random.default_rng(SEED)
    firsts = np.cumsum([0, *cache.sequences_by_part]).tolist()
    sources = [
        _of_part(cache, range(firsts[place], firsts[place + 1]), int(generator.integers(1 << 62)))
        for place in generator.permutation(len(cache.parts)).tolist()
    ]
    given = 0
    while sources:
        for source in list(sources):
            one = next(source, None)
            if one is None:
                sources.remove(source)
                continue
            yield one
            given += 1
            if given == n:
                return


def _of_part(cache: Cache, sequences: range, seed: int) -> Iterator[SampledDocument]:
    """The documents of a part, at random: one of each sequence, then another of each."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(sequences)).tolist()
    for turn in count():
        left = []
        for i in order:
            rows = cache[sequences[i]]
            ends = np.append(rows.document_starts[1:], len(rows))
            places = [slice(*place) for place in zip(rows.document_starts.tolist(), ends.tolist(), strict=True)]
            taught = [k for k, place in enumerate(places) if rows.loss_mask[place].any()]
            if turn + 1 < len(taught):
                left.append(i)
            if turn < len(taught):
                k = int(np.random.default_rng((seed, i)).permutation(taught)[turn])
                block = list(cut(_labels_once(rows), ends))[k]
                part = cache.locate(sequences[i])[0].record
                pooled = {layer: vectors[k] for layer, vectors in cache.pooled(sequences[i]).items()}
                cached = said(block, rows.loss_mask[places[k]], cache.manifest.vocabulary_size, pooled)
                yield _sampled(rows, places[k], int(rows.documents[k]), part, block, cached)
        order = left
        if not order:
            return


def _labels_once(rows: Rows) -> Block:
    """What rows hold, without the log p of next tokens that are exact ids: those are compared as exact ids."""
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
    piece = Segment(
        split=part.split,
        document=document,
        offset=0,
        tokens=rows.tokens[place],
        loss_mask=mask,
        token_bytes=np.zeros(len(mask), np.uint32),
        digest=b"",
    )
    name = f"document {document:,} of {part.split}"
    return SampledDocument(part=part.part, name=name, piece=piece, block=block, cached=cached)


def _answers(
    teacher: Teacher, cache: Cache, targets: TargetSpec, grouped: Sequence[Sequence[Segment]]
) -> list[DocumentPredictions]:
    manifest = cache.manifest
    asked = TargetRequest(
        targets=targets,
        hidden=manifest.hidden,
        vocabulary_size=manifest.vocabulary_size,
        seed=manifest.seed,
        # Copies: torch takes no array that lies in a file.
        tables={table.name: cache.table(table.name).copy() for table in manifest.tables if "pca_" in table.name},
        starts_word=_starts_word(cache) if targets.boundary else None,
    )
    found = []
    for group, answer in zip(grouped, teacher.answers(grouped, asked), strict=True):
        blocks = cut(answer.block, np.cumsum([len(piece) for piece in group]))
        for i, (piece, block) in enumerate(zip(group, blocks, strict=True)):
            pooled = {layer: vectors[i] for layer, vectors in answer.pooled.items()}
            found.append(said(block, piece.loss_mask, manifest.vocabulary_size, pooled))
    return found


def _starts_word(cache: Cache) -> Bools:
    """Which ids start a new word, by the tokenizer that the cache keeps."""
    _, kept = load_cached_tokenizer(cache)
    if kept is None:
        raise ConfigError(f"{cache.url} keeps no tokenizer, which tells where words start", hint="leave --against out")
    return kept.starts_word


def _nats(found: Sequence[Doubles]) -> NatsDifference:
    numbers = np.concatenate(found) if found else np.zeros(0)
    if not len(numbers):
        return NatsDifference(max_nats=0.0, mean_nats=0.0)
    return NatsDifference(max_nats=float(numbers.max()), mean_nats=float(numbers.mean()))
