"""Rows as DistillKit's recommended codec would store them, fitted in float64, from a small teacher trained on the spot.

In: a teacher's log-probabilities, and the codec. Out: rows with their packed columns, and what they decode to in
float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.schemas.interop import DistillkitCodec
from support.corpora import TEXTS
from support.distillkit_twin import bits_of, in_type, packed_values

Floats = npt.NDArray[np.float64]
# DistillKit's budget setting: one exact value, a short polynomial, nothing for what it misses.
N_BYTES = 256
BUDGET = DistillkitCodec(
    d=N_BYTES,
    k=50,
    exact_k=1,
    exact_dtype="bfloat16",
    polynomial_terms=(0, 1, "sqrt"),
    residual_bins=(),
    delta_encoding=False,
)
CONTEXT, STEPS, BATCH = 4, 250, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A row of the source: its columns, and for each token the ids with the values that were fitted to them."""

    columns: dict[str, Any]
    ids: npt.NDArray[np.int64]
    values: Floats


@cache
@torch.enable_grad()
def byte_teacher() -> torch.nn.Module:
    """A model of the next byte from the four before it, trained on Python's help topics in a second."""
    torch.manual_seed(0)
    tokens = torch.tensor(list("\n".join(TEXTS).encode()))
    model = torch.nn.Sequential(
        torch.nn.Embedding(N_BYTES, 32),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * CONTEXT, 96),
        torch.nn.GELU(),
        torch.nn.Linear(96, N_BYTES),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        ends = torch.randint(CONTEXT, len(tokens), (BATCH,))
        context = torch.stack([tokens[ends - CONTEXT + i] for i in range(CONTEXT)], dim=-1)
        loss = torch.nn.functional.cross_entropy(model(context), tokens[ends])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def teacher_rows(n: int, length: int) -> list[tuple[list[int], Floats]]:
    """Documents as bytes, and log p of the next byte, [length, 256]."""
    rows = []
    for text in TEXTS[:n]:
        tokens = list(text.encode())[:length]
        padded = torch.tensor([0] * (CONTEXT - 1) + tokens)
        with torch.no_grad():
            logits = byte_teacher()(padded.unfold(0, CONTEXT, 1))
        rows.append((tokens, logits.double().log_softmax(-1).numpy()))
    return rows


def encode(codec: DistillkitCodec, tokens: Sequence[int], logprobs: Floats) -> Encoded:
    """A row of tokens with the most probable ids of each: exact values, then a least-squares fit of the others."""
    ids = np.argsort(-logprobs, axis=1, kind="stable")[:, : codec.k]
    falling = np.take_along_axis(logprobs, ids, axis=1)
    stored = np.diff(falling, axis=1, prepend=0) if codec.delta_encoding else falling
    exact, left = np.split(stored, [codec.exact_k], axis=1)
    points = np.arange(codec.k - codec.exact_k, dtype=np.float64)
    terms = np.stack([points**t if isinstance(t, int) else np.sqrt(points) for t in codec.polynomial_terms or ()], -1)
    coefficients = left @ np.linalg.pinv(terms).T
    width = (codec.d - 1).bit_length()
    columns = {
        "input_ids": list(tokens),
        "compressed_logprobs": [
            list(packed_values(codec, a, b, [])) for a, b in zip(exact.tolist(), coefficients.tolist(), strict=True)
        ],
        "bytepacked_indices": [list(bits_of(row, width)) for row in ids.tolist()],
    }
    first = np.vectorize(lambda value: in_type(value, codec.exact_dtype), otypes=[float])(exact)
    values = np.hstack([first, coefficients @ terms.T])
    return Encoded(columns=columns, ids=ids, values=values.cumsum(axis=1) if codec.delta_encoding else values)


@cache
def budget_rows(n: int = 6, length: int = 60) -> list[Encoded]:
    """Documents of the trained teacher under the budget setting."""
    return [encode(BUDGET, tokens, logprobs) for tokens, logprobs in teacher_rows(n, length)]
