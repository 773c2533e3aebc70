"""A probe of a loaded model with a few tokens.

In: a model, its info, the tokenizer's vocabulary size. Out: its body, its layers and its head (None if unusable); or an
error if later tokens change earlier logits or logits are not finite.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.pipeline.models.head import TOLERANCE, Head, find_head
from kdpipe.pipeline.models.layers import all_states, body_of, decoder_layers, recorded_states, stream_dim
from kdpipe.pipeline.models.model_info import ModelInfo
from kdpipe.schemas.errors import ConfigError

PROBE_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedModel:
    """The body, the layers if found, and the head if it reproduces the model's logits.

    `stream_dim` is the dimension of parallel streams in the states of layers, if any.
    """

    body: nn.Module
    layers: Sequence[nn.Module] | None
    stream_dim: int | None
    head: Head | None
    device_of_logits: torch.device


def probe(model: Any, shape: ModelInfo, dtype: torch.dtype, device: torch.device, vocabulary_size: int) -> ProbedModel:
    """Check that the head reproduces the model's logits, and that attention is causal."""
    n = min(PROBE_TOKENS, shape.max_positions or PROBE_TOKENS)
    ids_BT = probe_ids(n, vocabulary_size, device)[None]
    # Some models treat this id as padding anywhere, and mask as many of the last tokens.
    padding = getattr(shape.config.get_text_config(), "pad_token_id", None)
    ids_BT = torch.where(ids_BT == padding, (ids_BT + 1) % vocabulary_size, ids_BT) if padding is not None else ids_BT
    own_TV = model(ids_BT, use_cache=False).logits[0].clone()
    check_finite_logits(shape.name, own_TV[:, :vocabulary_size], dtype, model)
    other_BT = ids_BT.clone()
    other_BT[0, -1] = (other_BT[0, -1] + 1) % vocabulary_size
    moved_TV = model(other_BT, use_cache=False).logits[0]
    if (own_TV[:-1] - moved_TV[:-1]).abs().max() > TOLERANCE[dtype] * own_TV.abs().max():
        raise ConfigError(
            f"{shape.name} is not a causal language model: its logits depend on later tokens",
            hint="a decoder-only language model is needed",
        )
    body = body_of(model)
    layers = decoder_layers(body, shape.n_layers)
    kept: dict[int, Tensor] = {}
    with recorded_states(layers or (), (1,), kept):
        out = body(ids_BT, use_cache=False, **all_states(layers is None))
    if layers is None and getattr(out, "hidden_states", None) is not None:
        kept[1] = out.hidden_states[1]
    states = None if body is model else getattr(out, "last_hidden_state", None)
    head, device_of_logits = None, own_TV.device
    if isinstance(states, Tensor):
        head = find_head(model, shape.config.get_text_config(), states[0], own_TV, vocabulary_size)
        device_of_logits = states.device
    return ProbedModel(
        body=body,
        layers=layers,
        stream_dim=stream_dim(kept[1], ids_BT) if 1 in kept else None,
        head=head,
        device_of_logits=device_of_logits,
    )


def check_finite_logits(name: str, logits_TV: Tensor, dtype: torch.dtype, model: nn.Module) -> None:
    """Refuse a model whose logits are not finite."""
    n_odd = int((~logits_TV.isfinite()).sum())
    if n_odd:
        overflow = "float16 overflows beyond 65,504: use bfloat16 or float32"
        raise ConfigError(
            f"logits of {name} are not finite: {n_odd:,} of {logits_TV.numel():,} for {len(logits_TV)} tokens"
            f"{_odd_weights(model)}",
            hint=overflow if dtype == torch.float16 else "its weights may be damaged: download or save the model again",
        )


def _odd_weights(model: nn.Module) -> str:
    """The first weights that are not finite, if any; offloaded ones are not checked."""
    for name, weights in model.named_parameters():
        if not weights.is_meta and weights.is_floating_point() and (n := int((~weights.isfinite()).sum())):
            return f"; {n:,} of {weights.numel():,} weights in {name} are not finite"
    return ""


def probe_ids(n: int, vocabulary_size: int, device: torch.device) -> Tensor:
    """Token ids spread over a vocabulary."""
    return torch.arange(n, device=device) * 7919 % vocabulary_size
