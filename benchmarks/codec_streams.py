"""The arrays of a synthetic cache as streams of codes, in the stored layout and in alternatives.

In: a recipe and a number of positions. Out: `Stream`s, each one array in one layout.
"""

import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.encode import CodedRows, encode
from kdpipe.cache.format.ragged import differences, draw_mask
from kdpipe.cache.format.rows import Block, Sequence
from kdpipe.schemas.arrays import MISSING

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.synthetic import Recipe, synthetic_manifest, synthetic_part, synthetic_tables

Codes = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One array in one layout; `pieces` are separate streams with a common total."""

    array: str
    layout: str
    pieces: tuple[Codes, ...]
    stored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The encoded rows of a synthetic cache with their targets."""

    recipe: Recipe
    names: tuple[str, ...]
    coded: CodedRows
    tokens: Codes
    n_exact: Counts
    n_draws: Counts
    ids: Codes
    exact_logprobs: npt.NDArray[np.float64]
    n_positions: int


def take_sample(recipe: Recipe, n_positions: int) -> Sample:
    """Encode sequences of a recipe until there are enough positions."""
    manifest = synthetic_manifest(recipe)
    rank_of_id = np.argsort(synthetic_tables(recipe)["ids_by_rank"]).astype(np.uint32)
    pairs: list[tuple[Sequence, Block]] = []
    seen = 0
    for pair in chain.from_iterable(synthetic_part(recipe, manifest, n) for n in range(manifest.plan.n_parts)):
        pairs.append(pair)
        seen += int(pair[0].loss_mask.sum())
        if seen >= n_positions:
            break
    coded = [encode(sequence, block, manifest, rank_of_id) for sequence, block in pairs]
    return Sample(
        recipe=recipe,
        names=tuple(column.name for column in manifest.arrays.row.columns),
        coded=CodedRows(
            columns=np.concatenate([rows.columns for rows in coded]),
            ids=np.concatenate([rows.ids for rows in coded]),
            times=np.concatenate([rows.times for rows in coded]),
            logprobs=np.concatenate([rows.logprobs for rows in coded]),
            vectors={name: np.concatenate([rows.vectors[name] for rows in coded]) for name in coded[0].vectors},
        ),
        tokens=np.concatenate([sequence.tokens for sequence, _ in pairs]).astype(np.uint32),
        n_exact=np.concatenate([block.n_exact for _, block in pairs]).astype(np.int64),
        n_draws=np.concatenate([block.n_draws for _, block in pairs]).astype(np.int64),
        ids=np.concatenate([block.ids for _, block in pairs]).astype(np.uint32),
        exact_logprobs=_exact_logprobs([block for _, block in pairs]),
        n_positions=seen,
    )


def _exact_logprobs(blocks: list[Block]) -> npt.NDArray[np.float64]:
    logprobs = [block.logprobs[~draw_mask(block.n_exact, block.n_draws)] for block in blocks]
    return np.concatenate(logprobs).astype(np.float64)


def id_streams(sample: Sample) -> list[Stream]:
    """Ids: stored as ranks, exact ones and differences of sorted draws in one stream."""
    is_draw = draw_mask(sample.n_exact, sample.n_draws)
    rows = np.repeat(np.arange(len(sample.n_exact)), sample.n_exact + sample.n_draws)
    tables = synthetic_tables(sample.recipe)["ids_by_rank"]
    fitted = np.argsort(np.argsort(-np.bincount(sample.ids, minlength=len(tables)), kind="stable"))
    streams = [Stream(array="id", layout="ranks, one stream", pieces=(sample.coded.ids,), stored=True)]
    streams.append(
        Stream(array="id", layout="raw ids, one stream", pieces=(_ordered(sample, sample.ids, rows, is_draw),))
    )
    shuffled = np.random.default_rng(0).permutation(len(tables)).astype(np.uint32)[sample.ids]
    streams.append(Stream(array="id", layout="unordered ids", pieces=(_ordered(sample, shuffled, rows, is_draw),)))
    best = fitted[sample.ids].astype(np.uint32)
    streams.append(
        Stream(array="id", layout="ranks fitted to this part", pieces=(_ordered(sample, best, rows, is_draw),))
    )
    if is_draw.any():
        exact, draws = sample.coded.ids[~is_draw], sample.coded.ids[is_draw]
        unsorted = np.argsort(tables).astype(np.uint32)[sample.ids]
        streams += [
            Stream(array="id", layout="ranks, exact and draws in two streams", pieces=(exact, draws)),
            Stream(array="id", layout="only the exact ids", pieces=(exact,)),
            Stream(array="id", layout="only the draws", pieces=(draws,)),
            Stream(array="id", layout="draws unsorted, one stream", pieces=(unsorted,)),
            Stream(array="id", layout="only the draws, unsorted", pieces=(unsorted[is_draw],)),
        ]
    return streams


def _ordered(sample: Sample, codes: Codes, rows: Counts, is_draw: npt.NDArray[np.bool_]) -> Codes:
    """Exact codes unchanged, draws sorted within their row and as differences."""
    place = np.where(is_draw, codes, np.arange(len(codes)))
    result = codes[np.lexsort((place, is_draw, rows))]
    result[is_draw] = differences(result[is_draw], sample.n_draws)
    return result


def logprob_streams(sample: Sample) -> list[Stream]:
    """Log p of exact ids: stored as differences within a row."""
    stored = sample.coded.logprobs
    starts = np.cumsum(sample.n_exact) - sample.n_exact
    sums = np.cumsum(stored, dtype=np.int64)
    absolute = sums - np.repeat((sums - stored)[starts[sample.n_exact > 0]], sample.n_exact[sample.n_exact > 0])
    first = np.zeros(len(stored), bool)
    first[starts[sample.n_exact > 0]] = True
    steps = []
    for inverse in (8, 32):
        codes = np.rint(-sample.exact_logprobs * inverse).astype(np.uint32)
        coarse = differences(codes, sample.n_exact)
        steps.append(Stream(array="logprob", layout=f"differences, step 1/{inverse}", pieces=(coarse,)))
    return [
        Stream(array="logprob", layout="differences within a row, step 1/16", pieces=(stored,), stored=True),
        Stream(array="logprob", layout="absolute", pieces=(absolute.astype(np.uint32),)),
        Stream(
            array="logprob",
            layout="differences, first ids in a separate stream",
            pieces=(stored[first], stored[~first]),
        ),
        *steps,
    ]


def times_streams(sample: Sample) -> list[Stream]:
    """Repeats of each draw minus one."""
    return [Stream(array="times", layout="stored", pieces=(sample.coded.times,), stored=True)]


def column_streams(sample: Sample) -> list[Stream]:
    """Each column of the row array; tokens also as raw ids."""
    streams = []
    for name, codes in zip(sample.names, np.ascontiguousarray(sample.coded.columns.T), strict=True):
        streams.append(Stream(array=name, layout="stored", pieces=(codes,), stored=True))
        if name in ("entropy", "label_logprob", "log_tail"):
            filled = _filled(codes)
            streams.append(Stream(array=name, layout="untrained rows repeat the previous code", pieces=(filled,)))
        if name == "token":
            streams.append(Stream(array=name, layout="raw ids", pieces=(sample.tokens,)))
    return streams


def _filled(codes: Codes) -> Codes:
    """Replace missing codes by the previous code."""
    last = np.maximum.accumulate(np.where(codes == MISSING, 0, np.arange(len(codes))))
    return codes[last]


def vector_streams(sample: Sample) -> list[Stream]:
    """Hidden states of every row, as stored bytes."""
    return [
        Stream(array=name, layout="int8 and scales", pieces=(coded.ravel().astype(np.uint32),), stored=True)
        for name, coded in sample.coded.vectors.items()
    ]
