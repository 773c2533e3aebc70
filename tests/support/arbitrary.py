"""Arbitrary caches: random sequences and targets with every edge that the format allows, from a few numbers.

In: a `Wish`. Out: its manifest, tables and the sequences and blocks of every part; written, a sealed cache.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.rows import Block, Floats, Sequence
from kdpipe.cache.opening import create_cache
from kdpipe.schemas.arrays import Arrays, default_arrays
from kdpipe.schemas.cache_plan import CachePlan, SplitPlan
from kdpipe.schemas.manifest import Data, Manifest, SourceColumn, TeacherRecord, Tokenizer, expected_tables
from kdpipe.schemas.targets import HiddenSpec, KeptSpec, TargetSpec, Vector
from support.tiny import unsynced

ZEROS = "0" * 64
COLUMNS = (
    SourceColumn(name="title", type="string"),
    SourceColumn(name="year", type="int64"),
    SourceColumn(name="score", type="float64"),
    SourceColumn(name="code", type="bool"),
)
TITLES = ("", "plain", "żółć 漢字 🙂", "line\nbreak\0nul", None)
POOLED = (Vector(layer=1, width=5, group=2), Vector(layer=3, width=8, group=8), Vector(layer=9, width=3, group=7))
BY_ROW = (Vector(layer=2, width=7, group=3), Vector(layer=9, width=1, group=4))


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a random cache must have; everything else follows from the seed."""

    keep: KeptSpec
    vocabulary_size: int = 50
    seed: int = 0
    part_lengths: tuple[tuple[int, ...], ...] = ((9, 1, 30), (1,), (64,))
    draw_values: bool = False
    target_temperature: float = 1.0
    temperatures: tuple[float, ...] = (2.0,)
    boundary: bool = False
    hidden: bool = False
    text: bool = False
    columns: bool = True
    chunk: int = 64

    @cached_property
    def targets(self) -> TargetSpec:
        """The target spec."""
        return TargetSpec(
            keep=self.keep,
            target_temperature=self.target_temperature,
            temperatures=() if self.keep.kind == "none" else self.temperatures,
            draw_values=self.draw_values,
            boundary=self.boundary,
            entropy=self.keep.kind != "none",
        )

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, with chunks so small that most sequences cross their borders."""
        hidden = HiddenSpec(pooled=POOLED, rows=BY_ROW) if self.hidden else HiddenSpec()
        bounds = np.cumsum([0, *(sum(_documents(n) for n in lengths) or 1 for lengths in self.part_lengths)])
        return Manifest(
            kdpipe="0",
            seed=self.seed,
            teacher=None if self.keep.kind == "none" else TeacherRecord(name="arbitrary"),
            tokenizer=Tokenizer(fingerprint=ZEROS, vocabulary_size=self.vocabulary_size),
            data=Data(fingerprint=ZEROS, source="arbitrary", columns=COLUMNS if self.columns else (), text=self.text),
            plan=CachePlan(splits=(SplitPlan(name="train", bounds=tuple(bounds.tolist())),), sequence_length=512),
            targets=self.targets,
            hidden=hidden,
            tables=expected_tables(self.targets, hidden, self.vocabulary_size),
            arrays=_small_chunks(default_arrays(self.targets, hidden, self.vocabulary_size), self.chunk),
        )

    @cached_property
    def tables(self) -> dict[str, npt.NDArray[Any]]:
        """The tables that the manifest names."""
        rng = np.random.default_rng([self.seed, 1])
        found: dict[str, npt.NDArray[Any]] = {}
        for table in self.manifest.tables:
            is_ranks = table.name == "ids_by_rank"
            found[table.name] = (
                rng.permutation(self.vocabulary_size).astype(np.uint32)
                if is_ranks
                else np.round(rng.standard_normal(table.shape) * 4) / np.float32(4)
            )
        return found

    @cached_property
    def parts(self) -> list[list[tuple[Sequence, Block]]]:
        """Every sequence with its targets, part by part."""
        rng = np.random.default_rng([self.seed, 2])
        bounds = self.manifest.plan.splits[0].bounds
        found = []
        for first, lengths in zip(bounds, self.part_lengths, strict=False):
            pairs = []
            for length in lengths:
                sequence = make_sequence(self, rng, length, first)
                first += len(sequence.documents)
                pairs.append((sequence, make_block(self, rng, sequence)))
            found.append(pairs)
        return found

    @property
    def pairs(self) -> list[tuple[Sequence, Block]]:
        """Every sequence with its targets, in order."""
        return [pair for part in self.parts for pair in part]


def write(path: Path, wish: Wish) -> Path:
    """The cache of a wish, sealed."""
    with unsynced():
        writer = create_cache(path, wish.manifest)
        writer.publish_tables(wish.tables)
        for number, pairs in enumerate(wish.parts):
            with writer.part(number) as part:
                for sequence, block in pairs:
                    part.add(sequence, block)
        writer.seal()
    return path


def _small_chunks(arrays: Arrays, n: int) -> Arrays:
    changed: dict[str, Any] = {"row": arrays.row.model_copy(update={"chunk_rows": n, "level": 2})}
    for name in ("id", "times", "logprob"):
        if (array := getattr(arrays, name)) is not None:
            changed[name] = array.model_copy(update={"chunk_entries": n, "level": 2})
    for name in ("hidden", "state"):
        if (array := getattr(arrays, name)) is not None:
            changed[name] = array.model_copy(update={"chunk_rows": 5})
    return arrays.model_copy(update=changed)


def _documents(length: int) -> int:
    """How many documents a sequence of a length is packed from."""
    return 1 + min(length // 7, 4)


def make_sequence(wish: Wish, rng: np.random.Generator, n: int, first_document: int) -> Sequence:
    """Random tokens of a few documents; now and then no position is trained."""
    n_documents = _documents(n)
    starts = np.concatenate([[0], np.sort(rng.choice(np.arange(1, n), n_documents - 1, replace=False))])
    mask = rng.random(n) < rng.choice([0.0, 0.5, 1.0], p=[0.1, 0.3, 0.6])
    mask[np.append(starts[1:], n) - 1] = False
    years = rng.integers(-(2**63), 2**63 - 1, n_documents)
    columns: dict[str, list[Any]] = {
        "title": [TITLES[i] for i in rng.integers(0, len(TITLES), n_documents)],
        "year": [None if rng.random() < 0.2 else int(year) for year in years],
        "score": [[None, 0.5, -1e300, float("inf")][i] for i in rng.integers(0, 4, n_documents)],
        "code": [[None, True, False][i] for i in rng.integers(0, 3, n_documents)],
    }
    return Sequence(
        tokens=rng.integers(0, wish.vocabulary_size, n),
        loss_mask=mask,
        token_bytes=rng.integers(0, rng.choice([2, 20, 65_537]), n),
        document_starts=starts,
        documents=np.arange(first_document, first_document + n_documents),
        digests=rng.integers(0, 256, (n_documents, 16), dtype=np.uint8),
        columns=columns if wish.columns else {},
        pooled={v.layer: _vectors(rng, n_documents, v.width) for v in wish.manifest.hidden.pooled},
        texts=[TITLES[i] or "" for i in rng.integers(0, 4, n_documents)] if wish.text else None,
    )


def _vectors(rng: np.random.Generator, n: int, width: int) -> Floats:
    """States of every size, some all zero."""
    found: Floats = (rng.standard_normal((n, width)) * 10.0 ** rng.integers(-6, 6, (n, 1))).astype(np.float32)
    found[rng.random(n) < 0.1] = 0.0
    return found


def make_block(wish: Wish, rng: np.random.Generator, sequence: Sequence) -> Block:
    """Random targets of a sequence's rows."""
    mask = sequence.loss_mask
    n, targets = len(mask), wish.targets
    counts = np.zeros((n, 2), np.int64)
    ids, logprobs, times = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros(0, np.int64)]
    log_tail = np.full(n, np.nan)
    if targets.has_entries:
        for t in np.flatnonzero(mask).tolist():
            counts[t] = _counts(wish, rng)
            row_ids, row_logprobs, log_tail[t] = _row(wish, rng, *counts[t].tolist())
            ids.append(row_ids)
            logprobs.append(row_logprobs)
            times.append(_times(wish, rng, int(counts[t, 1])))
    label = _labels(wish, rng, sequence, counts, ids[1:], logprobs[1:])
    top_entropy = np.log(wish.vocabulary_size)
    log_z = {t: (1 - 1 / t) * top_entropy * rng.random(n) for t in targets.temperatures}
    drawn = log_tail.copy()
    if targets.has_entries:
        flat = np.concatenate(logprobs)
        exact = flat[np.repeat(np.tile([True, False], n), counts.ravel())]
        whole = np.isneginf(log_tail) | ((counts[:, 1] == 0) & targets.has_draws)
        for temperature in targets.temperatures:
            tail, log_z[temperature] = _at_temperature(wish, rng, temperature, exact, counts[:, 0], whole)
            drawn = tail if temperature == targets.target_temperature else drawn
    near = rng.choice([-np.inf, -1e-9, -1e-3, -2.0, -60.0, 0.0], n)
    return Block(
        n_exact=counts[:, 0],
        n_draws=counts[:, 1],
        ids=np.concatenate(ids),
        logprobs=np.concatenate(logprobs).astype(np.float32),
        log_tail=log_tail.astype(np.float32),
        drawn_log_tail=drawn.astype(np.float32),
        entropy=np.where(rng.random(n) < 0.1, -1e-7, top_entropy * rng.random(n)).astype(np.float32),
        label_logprob=label.astype(np.float32),
        log_z={t: values.astype(np.float32) for t, values in log_z.items()},
        boundary_logprob=near.astype(np.float32),
        times=np.concatenate(times) if targets.keep.kind == "sampled" else None,
        hidden={v.layer: _vectors(rng, n, v.width) for v in wish.manifest.hidden.rows},
        state=_vectors(rng, n, targets.keep.width) if targets.keep.kind == "state" else None,
    )


def _labels(
    wish: Wish,
    rng: np.random.Generator,
    sequence: Sequence,
    counts: npt.NDArray[np.int64],
    ids: list[npt.NDArray[np.int64]],
    logprobs: list[npt.NDArray[np.float64]],
) -> npt.NDArray[np.float64]:
    """Log p of the next token: that of its exact id, below the largest one, or unknown where an import lost it."""
    n = len(sequence.tokens)
    label = np.where(rng.random(n) < 0.2, rng.choice([-np.inf, -300.0, 0.0], n), -rng.exponential(4, n))
    rows = np.flatnonzero(sequence.loss_mask) if wish.targets.has_entries else np.zeros(0, np.int64)
    for t, row_ids, values in zip(rows.tolist(), ids, logprobs, strict=True):
        exact = values[: counts[t, 0]]
        found = np.flatnonzero(row_ids[: counts[t, 0]] == sequence.tokens[t + 1])
        label[t] = exact[found[0]] if len(found) else min(label[t], float(exact.max()))
        if wish.keep.kind == "imported" and not len(found) and rng.random() < 0.5:
            label[t] = np.nan
    return label


def _at_temperature(
    wish: Wish,
    rng: np.random.Generator,
    temperature: float,
    exact: npt.NDArray[np.float64],
    n_exact: npt.NDArray[np.int64],
    whole: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The tail and the normalizer that a real distribution could have with these exact ids; `whole` rows: no tail."""
    rows = np.repeat(np.arange(len(n_exact)), n_exact)
    kept = np.bincount(rows, np.exp(exact / temperature), minlength=len(n_exact))
    flat = float(wish.vocabulary_size) ** (1 - 1 / temperature)
    most = max(1.0, flat)
    total = kept + (rng.random(len(n_exact)) * 0.9 + 0.05) * (most - kept)
    total = np.where(whole, np.maximum(kept, 1e-300), np.maximum(total, min(1.0, flat)))
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = np.log1p(-np.minimum(kept / total, 1.0))
        return np.where(n_exact > 0, tail, np.nan), np.where(n_exact > 0, np.log(total), np.nan)


def _counts(wish: Wish, rng: np.random.Generator) -> tuple[int, int]:
    """Numbers of exact ids and of draws per row: one, a few, or as many as fit."""
    most = min(wish.targets.max_entries, wish.vocabulary_size)
    if wish.keep.kind == "sampled":
        return 1, int(rng.integers(0, most))
    if wish.keep.kind == "topk":
        return most, 0
    n_exact = int(rng.choice([1, most, int(rng.integers(1, most + 1))]))
    left = most - n_exact if wish.targets.has_draws else 0
    return n_exact, int(rng.choice([0, min(1, left), left]))


def _times(wish: Wish, rng: np.random.Generator, n_draws: int) -> npt.NDArray[np.int64]:
    """How often each id was drawn: repeats add up to the requested draws."""
    found = np.ones(n_draws, np.int64)
    if wish.keep.kind == "sampled" and n_draws:
        shares = rng.dirichlet(np.full(n_draws, rng.choice([0.1, 1.0])))
        found += rng.multinomial(wish.keep.draws - n_draws, shares)
    return found


def _row(
    wish: Wish, rng: np.random.Generator, n_exact: int, n_draws: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], float]:
    """Ids in any order, their log p, and log_tail: certain, flat, tied, with p = 0, all but everything in the tail."""
    n = n_exact + n_draws
    size = wish.vocabulary_size
    pool = np.arange(size) if size <= 4 * n else np.unique(rng.integers(0, size, 8 * n))
    ids = rng.permutation(pool)[:n]
    if len(ids) < n:
        ids = rng.permutation(size)[:n]
    shares = rng.dirichlet(np.full(n_exact, rng.choice([0.1, 1.0, 100.0])))
    style = rng.random()
    if style < 0.15:
        shares = np.full(n_exact, 1 / n_exact)
    elif style < 0.3:
        shares = np.where(np.arange(n_exact) == 0, 1.0, 0.0)
    some = [1 - 1e-6, rng.uniform(0.05, 1), 1e-5]
    if wish.targets.has_draws:
        mass = float(rng.choice(some)) if n_draws else float(rng.choice([1.0, 1 - 1e-6]))
    else:
        mass = 1.0 if n == size else float(rng.choice([1.0, *some]))
    with np.errstate(divide="ignore"):
        logprobs, log_tail = np.log(mass * shares), np.log1p(-mass)
    order = rng.permutation(n_exact)
    draws = -rng.exponential(5, n_draws) if wish.draw_values else np.full(n_draws, np.nan)
    ids[:n_exact] = ids[:n_exact][order]
    return ids, np.concatenate([logprobs[order], draws]), float(log_tail)
