"""A few tokens read in several ways: what of a model can be relied on before it is used.

In: a model in memory, its shape, its vocabulary by the tokenizer. Out: its body, its layers and its head, or None where
it has none that we can use; a refusal where later tokens matter or logits are not finite.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.pipeline.models.head import TOLERANCE, Head, find_head
from kdpipe.pipeline.models.layers import all_states, body_of, decoder_layers, stream_dim, watching
from kdpipe.pipeline.models.model_info import ModelInfo
from kdpipe.schemas.errors import ConfigError

PROBE_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedModel:
    """What is in front of the head, the layers if they can be told, and the head if it gives the model's own logits.

    `stream_dim` is the dimension of the streams in states of layers that pass on several.
    """

    body: nn.Module
    layers: Sequence[nn.Module] | None
    stream_dim: int | None
    head: Head | None
    device_of_logits: torch.device


def probe(model: Any, shape: ModelInfo, dtype: torch.dtype, device: torch.device, vocabulary_size: int) -> ProbedModel:
    """Read a few tokens in two ways: does our head give the model's logits, and does nothing look to the right?"""
    n = min(PROBE_TOKENS, shape.max_positions or PROBE_TOKENS)
    ids_BT = probe_ids(n, vocabulary_size, device)[None]
    # Some models take this id for padding wherever it is, and hide as many of the last tokens.
    padding = getattr(shape.config.get_text_config(), "pad_token_id", None)
    ids_BT = torch.where(ids_BT == padding, (ids_BT + 1) % vocabulary_size, ids_BT) if padding is not None else ids_BT
    own_TV = model(ids_BT, use_cache=False).logits[0].clone()
    check_finite_logits(shape.name, own_TV[:, :vocabulary_size], dtype, model)
    other_BT = ids_BT.clone()
    other_BT[0, -1] = (other_BT[0, -1] + 1) % vocabulary_size
    moved_TV = model(other_BT, use_cache=False).logits[0]
    if (own_TV[:-1] - moved_TV[:-1]).abs().max() > TOLERANCE[dtype] * own_TV.abs().max():
        raise ConfigError(
            f"{shape.name} is no causal language model: its logits change with tokens that come later",
            hint="a decoder-only language model is needed",
        )
    body = body_of(model)
    layers = decoder_layers(body, shape.n_layers)
    kept: dict[int, Tensor] = {}
    with watching(layers or (), (1,), kept):
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
    """Refuse a model whose logits mean nothing: no other finding about it would be true."""
    n_odd = int((~logits_TV.isfinite()).sum())
    if n_odd:
        overflow = "float16 overflows beyond 65,504: give bfloat16 or float32"
        raise ConfigError(
            f"{name} gives logits that are not finite: {n_odd:,} of {logits_TV.numel():,} for {len(logits_TV)} tokens"
            f"{_odd_weights(model)}",
            hint=overflow if dtype == torch.float16 else "are the weights whole? download or save the model again",
        )


def _odd_weights(model: nn.Module) -> str:
    """The first weights that are not finite, where it is these; offloaded ones are not looked at."""
    for name, weights in model.named_parameters():
        if not weights.is_meta and weights.is_floating_point() and (n := int((~weights.isfinite()).sum())):
            return f"; of its weights {n:,} of {weights.numel():,} in {name} are not finite"
    return ""


def probe_ids(n: int, vocabulary_size: int, device: torch.device) -> Tensor:
    """Some token ids from all over a vocabulary."""
    return torch.arange(n, device=device) * 7919 % vocabulary_size
