"""`make_batch`: sequences of a cache as the tensors of one micro-batch; `check_wants`: whether a cache has them.

In: a cache, numbers of sequences, what is wanted of them. Out: a `MicroBatch` on the CPU, pinned when asked. What is
not wanted is not decoded: without targets only tokens are read, and a cache of kind `none` will do.
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
    """What is read beside the tokens: targets, the teacher's statistics of rows, states of rows and of documents."""

    targets: bool = False
    statistics: bool = False
    hidden: tuple[int, ...] = ()
    pooled: tuple[int, ...] = ()


def check_wants(cache: Cache, wants: BatchContents) -> None:
    """Refuse to want what a cache does not keep."""
    manifest = cache.manifest
    if wants.targets and manifest.targets.keep.kind == "none":
        raise Incompatible(
            f"{cache.url} keeps tokens only, it has no targets to learn from",
            hint="learn from labels alone (--mode output), or cache again with another --targets",
        )
    for what, layers, vectors in (
        ("states of rows", wants.hidden, manifest.hidden.rows),
        ("pooled states", wants.pooled, manifest.hidden.pooled),
    ):
        _check_layers(cache.url, what, layers, vectors)


def _check_layers(url: str, what: str, layers: Sequence[int], vectors: Sequence[Vector]) -> None:
    kept = [vector.layer for vector in vectors]
    missing = sorted(set(layers) - set(kept))
    if missing:
        there = f"of layers {', '.join(map(str, kept))}" if kept else "of no layer"
        raise Incompatible(
            f"{url} has no {what} of layer {missing[0]}: it keeps them {there}",
            hint="choose one that is there, or cache again with --hidden-layers",
        )


def make_batch(cache: Cache, numbers: Sequence[int], wants: BatchContents, *, pin: bool = False) -> MicroBatch:
    """Read some sequences, in this order, as one micro-batch."""
    # Neighbors share chunks: reading in stored order decodes each once.
    found = {number: _read(cache, number, wants) for number in sorted(set(numbers))}
    rows = [found[number] for number in numbers]
    whole = [one for one in rows if isinstance(one, Rows)]
    pooled, documents = _pooled(cache, numbers, wants.pooled)
    batch = MicroBatch(
        numbers=tuple(numbers),
        documents=tuple(tuple(one.documents.tolist()) for one in rows),
        **_tokens(rows),
        targets=_targets(cache, whole) if wants.targets else None,
        teacher_entropy_N=_scalar(whole, "entropy") if wants.statistics else None,
        label_logprob_N=_scalar(whole, "label_logprob") if wants.statistics else None,
        hidden={layer: _of_rows([one.hidden[layer] for one in whole], whole) for layer in wants.hidden},
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
    """Tokens and documents side by side, and where in them the rows are that are learnt from."""
    n_sequences, longest = len(rows), max(len(one.tokens) for one in rows)
    tokens = np.zeros((n_sequences, longest), np.int64)
    document = np.full((n_sequences, longest), -1, np.int64)
    places, labels, counts = [], [], []
    for b, one in enumerate(rows):
        n = len(one.tokens)
        trained = np.flatnonzero(one.loss_mask)
        tokens[b, :n] = one.tokens
        lengths = np.diff(np.append(one.document_starts, n))
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
    """What the teacher said at the rows that are learnt from; only these have entries."""
    spec = cache.manifest.targets
    count = _of_rows([one.count for one in rows], rows).long()
    ids, weights, logprobs = _entries(rows, count.numpy())
    state = [one.state for one in rows if one.state is not None]
    return Targets(
        ids_NK=ids,
        weights_NK=weights,
        logprobs_NK=logprobs,
        count_N=count,
        n_exact_N=_of_rows([one.n_exact for one in rows], rows).long(),
        log_tail_N=_scalar(rows, "log_tail") if spec.tail_known else None,
        entropy_N=_scalar(rows, "entropy"),
        log_z={t: _of_rows([one.log_z[t] for one in rows], rows) for t in spec.temperatures},
        state_NH=_of_rows(state, rows) if state else None,
        target_temperature=spec.target_temperature,
        draws_have_values=spec.draw_values,
    )


def _entries(rows: Sequence[Rows], count: Longs) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, weights and log p as [N, K]; behind a row's count its first id again, with weight 0 and log p -inf."""
    n, k = len(count), max(int(count.max(initial=0)), 1)
    flat = np.concatenate([one.ids for one in rows]).astype(np.int64)
    values = np.concatenate([one.logprobs for one in rows])
    starts = np.cumsum(count) - count
    first = np.zeros(n, np.int64)
    first[count > 0] = flat[starts[count > 0]]
    ids = np.repeat(first, k)
    weights, logprobs = np.zeros(n * k, np.float32), np.full(n * k, -np.inf, np.float32)
    places = np.arange(len(flat)) + np.repeat(np.arange(0, n * k, k) - starts, count)
    ids[places] = flat
    weights[places] = np.concatenate([one.weights for one in rows])
    logprobs[places] = np.where(np.isnan(values), np.float32(-np.inf), values)
    ids_NK, weights_NK, logprobs_NK = (array.reshape(n, k) for array in (ids, weights, logprobs))
    return torch.from_numpy(ids_NK), torch.from_numpy(weights_NK), torch.from_numpy(logprobs_NK)


def _scalar(rows: Sequence[Rows], name: str) -> Tensor | None:
    """A number of every row that is learnt from, where the cache keeps it."""
    values = [getattr(one, name) for one in rows]
    return None if any(value is None for value in values) else _of_rows(values, rows)


def _of_rows(values: Sequence[npt.NDArray[Any]], rows: Sequence[Rows]) -> Tensor:
    return torch.from_numpy(np.concatenate([value[one.loss_mask] for value, one in zip(values, rows, strict=True)]))


def _pooled(cache: Cache, numbers: Sequence[int], layers: Sequence[int]) -> tuple[Mapping[int, Tensor], Tensor | None]:
    """The documents' states by layer, and (sequence, document) of each."""
    if not layers:
        return {}, None
    found = [cache.pooled(number) for number in numbers]
    counts = [len(one[layers[0]]) for one in found]
    places = [(b, document) for b, count in enumerate(counts) for document in range(count)]
    states = {layer: torch.from_numpy(np.concatenate([one[layer] for one in found])) for layer in layers}
    return states, torch.tensor(places, dtype=torch.int64)
