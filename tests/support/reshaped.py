"""Caches that are made from others: what is in them, document by document, as a reader alone can tell.

In: the paths of caches. Out: a spelling of every document that does not depend on part, sequence or rank; problems.
"""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe.cache.format.rows import Rows
from kdpipe.cache.opening import create_cache, open_cache
from kdpipe.cache.reader import Cache
from kdpipe.cache.reshape.adopt import with_changes
from kdpipe.cache.verify.deep_child import Parts, check_part
from support.kinds import KINDS, kind_manifest, kind_part, kind_tables
from support.synthetic import synthetic_manifest

SCALARS = ("log_tail", "entropy", "label_logprob", "boundary_logprob")


def documents_in(path: Path, without: tuple[str, ...] = ()) -> Counter[bytes]:
    """All rows of each document, to the bit, with the counts of equal ones; draws sorted by id."""
    cache = open_cache(path)
    found: Counter[bytes] = Counter()
    for i in range(len(cache)):
        rows = cache[i]
        ends = [*rows.document_starts[1:].tolist(), len(rows)]
        for n, (first, end) in enumerate(zip(rows.document_starts.tolist(), ends, strict=True)):
            messages = {**of_rows(rows, first, end), **of_document(cache, i, n, first, end)}
            found[digest({name: value for name, value in messages.items() if name not in without})] += 1
    return found


def digest(messages: dict[str, Any]) -> bytes:
    """One digest of arrays and values."""
    spelled = {name: (v.dtype.str, v.tobytes()) if isinstance(v, np.ndarray) else v for name, v in messages.items()}
    return hashlib.sha256(repr(sorted(spelled.items())).encode()).digest()


def of_document(cache: Cache, sequence: int, n: int, first: int, end: int) -> dict[str, Any]:
    """What is kept of a document besides its rows."""
    return {
        "digest": cache.digests(sequence)[n],
        "columns": {name: values[n] for name, values in cache.columns(sequence).items()},
        "pooled": {layer: vectors[n].tobytes() for layer, vectors in cache.pooled(sequence).items()},
        "text": cache.texts(sequence)[n] if cache.manifest.data.text else None,
        "token_bytes": cache.token_bytes(sequence)[first:end],
    }


def of_rows(rows: Rows, first: int, end: int) -> dict[str, Any]:
    """What is kept of some rows, entries row by row."""
    starts = np.concatenate([[0], np.cumsum(rows.count)])
    draw_starts = np.concatenate([[0], np.cumsum(rows.count - rows.n_exact)])
    entries = []
    for t in range(first, end):
        for k in range(rows.count[t]):
            place, is_draw = starts[t] + k, k >= rows.n_exact[t]
            times = rows.times[draw_starts[t] + k - rows.n_exact[t]] if is_draw and rows.times is not None else 0
            order = (t - first, is_draw, int(rows.ids[place]) if is_draw else k)
            numbers = (rows.logprobs[place].tobytes(), rows.weights[place].tobytes(), int(times))
            entries.append((order, int(rows.ids[place]), *numbers))
    messages: dict[str, Any] = {"tokens": rows.tokens[first:end], "loss_mask": rows.loss_mask[first:end]}
    messages["entries"] = sorted(entries)
    for name in SCALARS:
        value = getattr(rows, name)
        messages[name] = None if value is None else value[first:end]
    messages["log_z"] = {t: value[first:end].tobytes() for t, value in rows.log_z.items()}
    messages["hidden"] = {layer: value[first:end].tobytes() for layer, value in rows.hidden.items()}
    messages["state"] = None if rows.state is None else rows.state[first:end]
    return messages


def problems_in(path: Path) -> list[str]:
    """What the deep level finds in every part, looked for in this process."""
    parts = Parts(str(path))
    return [str(found) for n in range(parts.manifest.plan.n_parts) for found in check_part(parts, n)]


def make_other_kind(path: Path, name: str, *, moved: bool = True) -> str:
    """A cache of a kind, beside that of `make_kind`: other documents, and ids in other ranks if they are `moved`."""
    recipe = replace(KINDS[name], documents={"train": 5}, documents_per_part=3)
    synthetic = synthetic_manifest(recipe)
    manifest = with_changes(kind_manifest(name), plan=synthetic.plan, data=synthetic.data)
    writer = create_cache(path, manifest)
    tables = kind_tables(name)
    if moved:
        tables["ids_by_rank"] = np.random.default_rng(7).permutation(tables["ids_by_rank"])
    writer.publish_tables(tables)
    for number in writer.missing():
        with writer.part(number) as part:
            for sequence, block in kind_part(name, manifest, number, recipe):
                part.add(sequence, block)
    return writer.seal()
