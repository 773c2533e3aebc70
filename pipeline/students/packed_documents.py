"""Documents within a packed sequence: where each starts, and how attention across them is prevented.

In: `document_BT`. Out: positions that restart with each document, or the documents as separate rows. Models of
transformers 5 use a block mask where positions restart, if they get neither a mask nor a cache; a probe at loading
shows which do. Others run documents one per row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["packed", "alone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentGroup:
    """Documents of similar length: `places_DL` in the flat sequences, padded with a document's last place."""

    places_DL: Tensor
    is_there_DL: Tensor


def positions(document_BT: Tensor) -> Tensor:
    """The position of each token within its document."""
    n_tokens = document_BT.shape[1]
    place_BT = torch.arange(n_tokens, device=document_BT.device).expand_as(document_BT)
    begins_BT = torch.ones_like(document_BT, dtype=torch.bool)
    begins_BT[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
    start_BT = torch.where(begins_BT, place_BT, 0).cummax(dim=1).values
    return place_BT - start_BT


def is_packed(document_BT: Tensor) -> bool:
    """Whether a sequence has more than one document."""
    return bool((document_BT > 0).any())


def alone(document_BT: Tensor, switches_at: int | None) -> list[DocumentGroup]:
    """Documents as rows, in groups whose lengths differ by less than a factor of 2 and not across `switches_at`."""
    flat, n_tokens = document_BT.flatten(), document_BT.shape[1]
    begins = torch.ones_like(flat, dtype=torch.bool)
    begins[1:] = flat[1:] != flat[:-1]
    begins[::n_tokens] = True
    starts = begins.nonzero().flatten()
    lengths = torch.diff(starts, append=starts.new_tensor([len(flat)]))
    is_document = flat[starts] >= 0
    starts, lengths = starts[is_document], lengths[is_document]
    keys = [(n.bit_length(), switches_at is not None and n > switches_at) for n in lengths.tolist()]
    groups = []
    for key in sorted(set(keys)):
        chosen = torch.tensor([k == key for k in keys], device=flat.device)
        groups.append(_group(starts[chosen], lengths[chosen]))
    return groups


def _group(starts_D: Tensor, lengths_D: Tensor) -> DocumentGroup:
    place_L = torch.arange(int(lengths_D.max()), device=starts_D.device)
    last_D1 = (lengths_D - 1)[:, None]
    return DocumentGroup(
        places_DL=starts_D[:, None] + torch.minimum(place_L, last_D1),
        is_there_DL=place_L <= last_D1,
    )


def run_alone(
    tokens_BT: Tensor, document_BT: Tensor, switches_at: int | None, run: Callable[[Tensor], dict[int, Tensor]]
) -> dict[int, Tensor]:
    """Run documents one per row, and put the states back in place, zeros at padding."""
    flat = tokens_BT.flatten()
    kept: dict[int, list[Tensor]] = {}
    places = []
    for group in alone(document_BT, switches_at):
        for name, states_DLH in run(flat[group.places_DL]).items():
            kept.setdefault(name, []).append(states_DLH[group.is_there_DL])
        places.append(group.places_DL[group.is_there_DL])
    where = torch.cat(places)
    whole_states = {}
    for name, states in kept.items():
        states_NH = torch.cat(states)
        whole = states_NH.new_zeros(len(flat), states_NH.shape[-1]).index_copy(0, where, states_NH)
        whole_states[name] = whole.view(*tokens_BT.shape, -1)
    return whole_states
