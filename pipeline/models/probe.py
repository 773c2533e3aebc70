"""A few tokens read in several ways: what of a model can be relied on before it is used.

In: a model in memory, its shape, its vocabulary by the tokenizer. Out: its head, or None where it has none that we can
use; a refusal where later tokens matter. Before it: a loaded model. After it: `teachers/forward.py`,
`students/student.py`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdpipe.pipeline.models.head import TOLERANCE, Head, find_head
from kdpipe.pipeline.models.shapes import ModelShape
from kdpipe.schemas.errors import ConfigError

PROBE_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """The head, if it gives the model's own logits, and the device on which those lie."""

    head: Head | None
    device_of_logits: torch.device


def probe(model: Any, shape: ModelShape, dtype: torch.dtype, device: torch.device, vocabulary_size: int) -> Probed:
    """Read a few tokens in two ways: does our head give the model's logits, and does nothing look to the right?"""
    n = min(PROBE_TOKENS, shape.max_positions or PROBE_TOKENS)
    ids_BT = probe_ids(n, vocabulary_size, device)[None]
    own_TV = model(ids_BT, use_cache=False).logits[0].clone()
    other_BT = ids_BT.clone()
    other_BT[0, -1] = (other_BT[0, -1] + 1) % vocabulary_size
    moved_TV = model(other_BT, use_cache=False).logits[0]
    if (own_TV[:-1] - moved_TV[:-1]).abs().max() > TOLERANCE[dtype] * own_TV.abs().max():
        raise ConfigError(
            f"{shape.name} is no causal language model: its logits change with tokens that come later",
            hint="a decoder-only language model is needed",
        )
    body = model.base_model
    if body is model:
        return Probed(head=None, device_of_logits=own_TV.device)
    states = getattr(body(ids_BT, use_cache=False), "last_hidden_state", None)
    if not isinstance(states, Tensor):
        return Probed(head=None, device_of_logits=own_TV.device)
    head = find_head(model, shape.config.get_text_config(), states[0], own_TV, vocabulary_size)
    return Probed(head=head, device_of_logits=states.device)


def probe_ids(n: int, vocabulary_size: int, device: torch.device) -> Tensor:
    """Some token ids from all over a vocabulary."""
    return torch.arange(n, device=device) * 7919 % vocabulary_size
