"""`make_batch`: sequences of a cache as the tensors of one micro-batch; `check_contents`: whether a cache has them.

In: a cache, numbers of sequences, the requested contents. Out: a `MicroBatch` on the CPU, optionally pinned. Only the
requested contents are decoded: without targets that is the tokens, which caches of kind `none` have too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdpipe.cache.format.rows import Rows, TokenRows
from kdpipe.cache.reader import Cache
from kdpipe.pipeline.batches.micro_batch import MicroBatch, Targets, with_tensors
from kdpipe.schemas.errors import CacheDamaged, Incompatible
from kdpipe.schemas.targets import Vector

Longs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchContents:
    """What is read besides the tokens: targets, teacher statistics of rows, layers of states of rows and documents."""

    targets: bool = False
    statistics: bool = False
    hidden: tuple[int, ...] = ()
    pooled: tuple[int, ...] = ()


def check_contents(cache: Cache, wants: BatchContents) -> None:
    """Refuse contents that a cache does not have."""
    manifest = cache.manifest
    if wants.targets and not manifest.targets.keep.has_teacher:
        raise Incompatible(
            f"{cache.url} has tokens only, no targets",
            hint="train on labels only (--mode output), or cache again with other --targets",
        )
    for what, layers, vectors in (
        ("states of rows", wants.hidden, manifest.hidden.rows),
        ("pooled states", wants.pooled, manifest.hidden.pooled),
    ):
        _check_layers(cache.url, what, layers, vectors)


def _check_layers(url: str, what: str, layers: Sequence[int], vectors: Sequence[Vector]) -> None:
    cached = [vector.layer for vector in vectors]
    missing = sorted(set(layers) - set(cached))
    if missing:
        raise Incompatible(
            f"{url} has no {what} of layer {missing[0]}; cached layers: {', '.join(map(str, cached)) or 'none'}",
            hint="use a cached layer, or cache again with --hidden-layers",
        )


def make_batch(cache: Cache, numbers: Sequence[int], wants: BatchContents, *, pin: bool = False) -> MicroBatch:
    """Read sequences as one micro-batch, in this order."""
    # Neighbors share chunks: reading in stored order decodes each once.
    by_number = {number: _read(cache, number, wants) for number in sorted(set(numbers))}
    rows = [by_number[number] for number in numbers]
    whole = [sequence for sequence in rows if isinstance(sequence, Rows)]
    pooled, documents = _pooled(cache, numbers, wants.pooled)
    batch = MicroBatch(
        numbers=tuple(numbers),
        documents=tuple(tuple(sequence.documents.tolist()) for sequence in rows),
        **_tokens(rows),
        targets=_targets(cache, whole) if wants.targets else None,
        teacher_entropy_N=_scalar(whole, "entropy") if wants.statistics else None,
        label_logprob_N=_scalar(whole, "label_logprob") if wants.statistics else None,
        hidden={layer: _of_rows([sequence.hidden[layer] for sequence in whole], whole) for layer in wants.hidden},
        pooled=pooled,
        document_D2=documents,
    )
    return with_tensors(batch, Tensor.pin_memory) if pin else batch


def _read(cache: Cache, number: int, wants: BatchContents) -> Rows | TokenRows:
    if wants.targets or wants.statistics or wants.hidden:
        rows: Rows | TokenRows = cache.rows(number, hidden=bool(wants.hidden))
    else:
        rows = cache.tokens(number)
    if rows.loss_mask[-1]:
        raise CacheDamaged(f"sequence {number} of {cache.url}: its last row has a loss_mask, but no next token")
    return rows


def _tokens(rows: Sequence[Rows | TokenRows]) -> dict[str, Tensor]:
    """Padded tokens and document numbers, and the places and labels of the trained rows."""
    n_sequences, longest = len(rows), max(len(sequence.tokens) for sequence in rows)
    tokens = np.zeros((n_sequences, longest), np.int64)
    document = np.full((n_sequences, longest), -1, np.int64)
    places, labels, counts = [], [], []
    for b, sequence in enumerate(rows):
        n = len(sequence.tokens)
        trained = np.flatnonzero(sequence.loss_mask)
        tokens[b, :n] = sequence.tokens
        lengths = np.diff(np.append(sequence.document_starts, n))
        document[b, :n] = np.repeat(np.arange(len(lengths)), lengths)
        places.append(trained + b * longest)
        labels.append(tokens[b, trained + 1])
        counts.append(len(trained))
    return {
        "tokens_BT": torch.from_numpy(tokens),
        "document_BT": torch.from_numpy(document),
        "places_N": torch.from_numpy(np.concatenate(places)),
        "sequence_N": torch.from_numpy(np.repeat(np.arange(n_sequences), counts)),
        "labels_N": torch.from_numpy(np.concatenate(labels)),
    }


def _targets(cache: Cache, rows: Sequence[Rows]) -> Targets:
    """The teacher at the trained rows; only these have entries."""
    spec = cache.manifest.targets
    count = _of_rows([sequence.count for sequence in rows], rows).long()
    ids, weights, logprobs = _entries(rows, count.numpy())
    state = [sequence.state for sequence in rows if sequence.state is not None]
    return Targets(
        ids_NK=ids,
        weights_NK=weights,
        logprobs_NK=logprobs,
        count_N=count,
        n_exact_N=_of_rows([sequence.n_exact for sequence in rows], rows).long(),
        log_tail_N=_scalar(rows, "log_tail") if spec.tail_known else None,
        entropy_N=_scalar(rows, "entropy"),
        log_z={t: _of_rows([sequence.log_z[t] for sequence in rows], rows) for t in spec.temperatures},
        state_NH=_of_rows(state, rows) if state else None,
        target_temperature=spec.target_temperature,
        draws_have_values=spec.draw_values,
    )


def _entries(rows: Sequence[Rows], count: Longs) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, weights and log p as [N, K]; places beyond a row's count repeat its first id with weight 0, log p -inf."""
    n, k = len(count), max(int(count.max(initial=0)), 1)
    flat = np.concatenate([sequence.ids for sequence in rows]).astype(np.int64)
    values = np.concatenate([sequence.logprobs for sequence in rows])
    starts = np.cumsum(count) - count
    first = np.zeros(n, np.int64)
    first[count > 0] = flat[starts[count > 0]]
    ids = np.repeat(first, k)
    weights, logprobs = np.zeros(n * k, np.float32), np.full(n * k, -np.inf, np.float32)
    places = np.arange(len(flat)) + np.repeat(np.arange(0, n * k, k) - starts, count)
    ids[places] = flat
    weights[places] = np.concatenate([sequence.weights for sequence in rows])
    logprobs[places] = np.where(np.isnan(values), np.float32(-np.inf), values)
    ids_NK, weights_NK, logprobs_NK = (array.reshape(n, k) for array in (ids, weights, logprobs))
    return torch.from_numpy(ids_NK), torch.from_numpy(weights_NK), torch.from_numpy(logprobs_NK)


def _scalar(rows: Sequence[Rows], name: str) -> Tensor | None:
    """A scalar of every trained row, if cached."""
    values = [getattr(sequence, name) for sequence in rows]
    return None if any(value is None for value in values) else _of_rows(values, rows)


def _of_rows(values: Sequence[npt.NDArray[Any]], rows: Sequence[Rows]) -> Tensor:
    return torch.from_numpy(
        np.concatenate([value[sequence.loss_mask] for value, sequence in zip(values, rows, strict=True)])
    )


def _pooled(cache: Cache, numbers: Sequence[int], layers: Sequence[int]) -> tuple[Mapping[int, Tensor], Tensor | None]:
    """Pooled states of documents by layer, and the (sequence, document) of each."""
    if not layers:
        return {}, None
    pooled = [cache.pooled(number) for number in numbers]
    counts = [len(states[layers[0]]) for states in pooled]
    places = [(b, document) for b, count in enumerate(counts) for document in range(count)]
    states = {layer: torch.from_numpy(np.concatenate([by_layer[layer] for by_layer in pooled])) for layer in layers}
    return states, torch.tensor(places, dtype=torch.int64)
