"""Differences between two predictions for the same rows: a cache and its teacher, or two runs of a teacher.

In: targets of some documents, twice. Out: by document, how far apart they are beyond what rounding explains.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.ragged import draw_mask
from kdpipe.cache.format.rows import Block, Bools, Floats
from kdpipe.schemas.arrays import Column, LinearQuantizer, LogOddsQuantizer, log_z_column
from kdpipe.schemas.manifest import Manifest

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentPredictions:
    """Predictions for one document: scalars at its positions, log p of the exact ids by (row, id), states of all rows
    and their means.

    No other id of a row is more probable than its `ceilings`: the least of the exact ids, and the mass left by them.
    """

    scalars: Mapping[str, Doubles]
    keys: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    logprobs: Doubles
    ceilings: Doubles
    vectors: Mapping[str, Doubles]


def comparable(
    block: Block, loss_mask: Bools, vocabulary_size: int, pooled: Mapping[int, Floats]
) -> DocumentPredictions:
    """The parts of a document's targets that can be compared."""
    n_exact = block.n_exact.astype(np.int64)
    exact = ~draw_mask(n_exact, block.n_draws.astype(np.int64))
    rows, logprobs = np.repeat(np.arange(len(n_exact)), n_exact), block.logprobs[exact].astype(np.float64)
    keys = rows * vocabulary_size + block.ids[exact]
    order = np.argsort(keys)
    ceilings = np.full(len(n_exact), np.inf)
    np.minimum.at(ceilings, rows, logprobs)
    if block.log_tail is not None:
        ceilings = np.fmin(ceilings, block.log_tail.astype(np.float64))
    named = {name: getattr(block, name) for name in ("log_tail", "entropy", "label_logprob", "boundary_logprob")}
    named |= {log_z_column(temperature): values for temperature, values in block.log_z.items()}
    return DocumentPredictions(
        scalars={name: values[loss_mask].astype(np.float64) for name, values in named.items() if values is not None},
        keys=keys[order],
        rows=rows[order],
        logprobs=logprobs[order],
        ceilings=ceilings,
        vectors={name: values.astype(np.float64) for name, values in _vectors(block, pooled)},
    )


def _vectors(block: Block, pooled: Mapping[int, Floats]) -> Iterator[tuple[str, Floats]]:
    yield from ((f"the mean state of layer {layer}", vector) for layer, vector in pooled.items())
    yield from ((f"the state of layer {layer}", values) for layer, values in block.hidden.items())
    if block.state is not None:
        yield "the last state", block.state


def relative_distances(one: DocumentPredictions, other: DocumentPredictions) -> dict[str, float]:
    """Distances of states, relative to their norm."""
    return {
        name: float(np.linalg.norm(one.vectors[name] - twin) / max(float(np.linalg.norm(twin)), 1e-30))
        for name, twin in other.vectors.items()
    }


def differences(one: DocumentPredictions, other: DocumentPredictions, bounds: Mapping[str, float]) -> Doubles:
    """Absolute differences beyond the rounding of the codec; equal infinities do not differ.

    Masses are compared as probabilities, since the log of a tiny mass is noise. An id that is exact on one side only,
    since a threshold may fall between them, must not be more probable than the other side allows.
    """
    parts = []
    for name in one.scalars.keys() & other.scalars.keys():
        a, b = one.scalars[name], other.scalars[name]
        if name in ("log_tail", "boundary_logprob"):
            a, b = np.exp(a), np.exp(b)
        parts.append(_excess(a, b, bounds.get(name, 0.0)))
    _, own, others = np.intersect1d(one.keys, other.keys, assume_unique=True, return_indices=True)
    parts.append(_excess(one.logprobs[own], other.logprobs[others], bounds.get("logprob", 0.0)))
    parts += [_ceiling_excess(a, b, bounds.get("logprob", 0.0)) for a, b in ((one, other), (other, one))]
    return np.concatenate(parts)


def _ceiling_excess(one: DocumentPredictions, other: DocumentPredictions, bound: float) -> Doubles:
    """By how much ids that are exact on one side only exceed the ceiling of the other side."""
    alone = ~np.isin(one.keys, other.keys)
    ceilings = other.ceilings[one.rows[alone]]
    excess: Doubles = np.maximum(one.logprobs[alone] - ceilings - bound, 0.0)
    return excess


def _excess(a: Doubles, b: Doubles, bound: float) -> Doubles:
    known = ~(np.isnan(a) | np.isnan(b)) & ~((a == b) & np.isinf(a))
    with np.errstate(invalid="ignore"):
        excess: Doubles = np.maximum(np.abs(a[known] - b[known]) - bound, 0.0)
    return excess


def codec_bounds(manifest: Manifest) -> dict[str, float]:
    """The largest error of each number, as docs/cache-format.md states it under Quantizers."""
    bounds = {column.name: _bound(column) for column in manifest.arrays.row.columns}
    if manifest.arrays.logprob is not None:
        bounds["logprob"] = manifest.arrays.logprob.quantizer.step + bounds.get("log_tail", 0.0)
    return bounds


def _bound(column: Column) -> float:
    return column.quantizer.step / 2 if isinstance(column.quantizer, LinearQuantizer | LogOddsQuantizer) else 0.0
