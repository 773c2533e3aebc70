"""The slow twin of a cache: what reading must give back, worked out row by row in float64 from what was written.

In: a `Sequence`, its `Block`, the manifest and ids_by_rank. Out: `Expected` rows in plain Python and float64. It shares
no code with `kdpipe.cache` but the two records that it is given.
"""

import math
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.rows import Block, Sequence
from kdpipe.schemas.arrays import LinearQuantizer, LogOddsQuantizer
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.target_kinds import State

Doubles = npt.NDArray[np.float64]
NAN = math.nan
INFINITY = math.inf


@dataclass(kw_only=True)
class Entry:
    """One id of a row."""

    id: int
    logprob: float
    is_draw: bool
    times: int = 1
    weight: float = NAN


@dataclass(kw_only=True)
class Expected:
    """What `c[i]` must say of a sequence."""

    rows: list[list[Entry]] = field(default_factory=list)
    scalars: dict[str, list[float]] = field(default_factory=dict)
    hidden: dict[int, Doubles] = field(default_factory=dict)
    state: Doubles | None = None


def encode(quantizer: LinearQuantizer | LogOddsQuantizer, value: float) -> int:
    """The code of a number."""
    if math.isnan(value):
        return 65535
    if value == -INFINITY:
        return 65534
    if isinstance(quantizer, LogOddsQuantizer):
        if value >= 0:
            return 65533
        return min(max(round((value - math.log(-math.expm1(value))) / quantizer.step) + quantizer.zero, 0), 65533)
    code = round(quantizer.sign * value / quantizer.step) + quantizer.zero
    return 65534 if code > 65533 and quantizer.sign < 0 else code


def decode(quantizer: LinearQuantizer | LogOddsQuantizer, code: int) -> float:
    """The number of a code."""
    if code >= 65534:
        return NAN if code == 65535 else -INFINITY
    x = (code - quantizer.zero) * quantizer.step
    return -log_one_plus_exp(-x) if isinstance(quantizer, LogOddsQuantizer) else quantizer.sign * x


def complement(quantizer: LogOddsQuantizer, code: int) -> float:
    """log(1 - exp(value of the code))."""
    return 0.0 if code == 65534 else -log_one_plus_exp((code - quantizer.zero) * quantizer.step)


def log_one_plus_exp(x: float) -> float:
    """log(1 + e^x) without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def exp(x: float) -> float:
    """e^x, 0 at minus infinity."""
    return 0.0 if x == -INFINITY else math.exp(x)


def expected_rows(sequence: Sequence, block: Block, manifest: Manifest, ids_by_rank: Many[int]) -> Expected:
    """What reading a sequence must give."""
    quantizers: dict[str, Any] = {column.name: column.quantizer for column in manifest.arrays.row.columns}
    rank = {int(token): place for place, token in enumerate(ids_by_rank)}
    found = Expected(
        scalars={name: [] for name, quantizer in quantizers.items() if quantizer.kind in ("linear", "log_odds")}
    )
    place = draw = 0
    for t in range(len(sequence.tokens)):
        codes = {name: _scalar_code(quantizers[name], name, sequence, block, t) for name in found.scalars}
        for name, code in codes.items():
            found.scalars[name].append(decode(quantizers[name], code))
        n_exact, n_draws = int(block.n_exact[t]), int(block.n_draws[t])
        entries = [
            Entry(id=int(block.ids[place + j]), logprob=float(block.logprobs[place + j]), is_draw=j >= n_exact)
            for j in range(n_exact + n_draws)
        ]
        if block.times is not None:
            for j, entry in enumerate(entries[n_exact:]):
                entry.times = int(block.times[draw + j])
        exact = sorted((e for e in entries if not e.is_draw), key=lambda e: (-e.logprob, e.id))
        draws = sorted((e for e in entries if e.is_draw), key=lambda e: rank[e.id])
        found.rows.append(exact + draws)
        if entries:
            _read_back(exact, draws, codes, quantizers, manifest)
        place, draw = place + n_exact + n_draws, draw + n_draws
    for vector in manifest.hidden.rows:
        found.hidden[vector.layer] = quantized(block.hidden[vector.layer], vector.group)
    keep = manifest.targets.keep
    if isinstance(keep, State) and block.state is not None:
        found.state = quantized(block.state, keep.group)
    return found


def _scalar_code(
    quantizer: LinearQuantizer | LogOddsQuantizer, name: str, sequence: Sequence, block: Block, t: int
) -> int:
    if not sequence.loss_mask[t]:
        return 65535
    column, _, temperature = name.partition("@")
    values = block.log_z[float(temperature)] if temperature else getattr(block, column)
    return encode(quantizer, float(values[t]))


def _read_back(
    exact: list[Entry], draws: list[Entry], codes: Mapping[str, int], quantizers: Mapping[str, Any], manifest: Manifest
) -> None:
    """Round the log p of a row's entries as storing does, make exact mass and tail sum to 1, and weigh."""
    assert manifest.arrays.logprob is not None
    targets, quantizer = manifest.targets, manifest.arrays.logprob.quantizer
    for entry in exact + draws:
        entry.logprob = decode(quantizer, encode(quantizer, entry.logprob))
    if not targets.draw_values:
        for entry in draws:
            entry.logprob = NAN
    if not targets.tail_known:
        for entry in exact:
            entry.weight = exp(entry.logprob)
        return
    shift = complement(quantizers["log_tail"], codes["log_tail"]) - math.log(sum(exp(e.logprob) for e in exact))
    for entry in exact:
        entry.logprob += shift
    temperature, name = targets.target_temperature, "log_tail"
    log_z = 0.0
    if temperature != 1.0:
        name = "drawn_log_tail"
        column = f"log_z@{temperature!r}"
        log_z = decode(quantizers[column], codes[column])
    powers = [exp(entry.logprob / temperature - log_z) for entry in exact]
    mass = exp(complement(quantizers[name], codes[name]))
    for entry, power in zip(exact, powers, strict=True):
        entry.weight = power * mass / sum(powers)
    tail = exp(decode(quantizers[name], codes[name]))
    for entry in draws:
        entry.weight = tail * entry.times / sum(e.times for e in draws)


def quantized(vectors: npt.NDArray[Any], group: int) -> Doubles:
    """Numbers as int8 in groups that share a float32 scale."""
    result = np.zeros(vectors.shape)
    for row in range(vectors.shape[0]):
        for first in range(0, vectors.shape[1], group):
            cut = slice(first, min(first + group, vectors.shape[1]))
            scale = float(np.float32(max(abs(float(x)) for x in vectors[row, cut])) / np.float32(127))
            result[row, cut] = [scale * round(float(np.float32(x) / np.float32(scale or 1))) for x in vectors[row, cut]]
    return result


def differences(codes: Many[int], counts: Many[int]) -> list[int]:
    """Each code less the one before it in its row, in 32 bits; the first of a row stays."""
    found, place = [], 0
    for count in counts:
        for j in range(count):
            found.append((codes[place + j] - (codes[place + j - 1] if j else 0)) % (1 << 32))
        place += count
    return found


def dense_target(expected: Expected, sequence: Sequence, manifest: Manifest, tables: Mapping[str, Any]) -> Doubles:
    """The target of every row over the whole vocabulary, as log-probabilities; NaN where the mask is false."""
    targets, size = manifest.targets, manifest.vocabulary_size
    result = np.full((len(sequence.tokens), size), NAN)
    for t in np.flatnonzero(sequence.loss_mask).tolist():
        if isinstance(targets.keep, State):
            assert expected.state is not None
            result[t] = _softmax_row(expected.state[t].tolist(), targets.keep, targets.target_temperature, tables)
            continue
        entries = expected.rows[t]
        left = size - len(entries)
        rest = 0.0 if targets.has_draws or not left else max(0.0, 1 - sum(e.weight for e in entries)) / left
        result[t] = math.log(rest) if rest else -INFINITY
        for entry in entries:
            result[t, entry.id] = math.log(entry.weight) if entry.weight else -INFINITY
    return result


def _softmax_row(state: list[float], keep: State, temperature: float, tables: Mapping[str, Any]) -> list[float]:
    logits = []
    for number, weights in enumerate(tables["output_head"].tolist()):
        logit = sum(a * b for a, b in zip(weights, state, strict=True))
        if keep.head_bias:
            logit += float(tables["output_bias"][number])
        logit *= keep.logit_scale
        if keep.soft_cap is not None:
            logit = keep.soft_cap * math.tanh(logit / keep.soft_cap)
        logits.append(logit / temperature)
    top = max(logits)
    total = math.log(sum(math.exp(logit - top) for logit in logits))
    return [logit - top - total for logit in logits]
