"""`LogitChunk`: as many rows of logits as fit into a processor's cache while all their targets are computed.

In: logits of up to `n_rows` rows. Out: powers of p at one temperature after the other, sums of them, the largest ids.
Buffers are allocated once and always used whole: a row's numbers do not depend on how many rows came with it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Sums and searches work on blocks of neighboring ids first.
BLOCK = 64
# Numbers of a buffer: the active part of four of 4 MiB stays in a CPU's cache; a GPU needs more at once.
CPU_NUMBERS, GPU_NUMBERS = 1 << 20, 1 << 24
CPU_ROWS, GPU_ROWS = 64, 4096
# Instead of minus infinity: 0 after exp at every temperature, and no NaN when multiplied with that 0.
NOTHING = -1e30
_MAGNITUDE = (1 << 31) - 1
_ID_BITS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptEntries:
    """A row has `n_exact` exact ids, then `n_draws` draws with their `times`; the remaining slots are undefined."""

    n_exact_C: Tensor
    n_draws_C: Tensor
    ids_CK: Tensor
    times_CK: Tensor | None = None


class LogitChunk:
    """Rows of `shifted` logits (the largest is 0) and their `powers` exp(shifted / T), at the current temperature T."""

    def __init__(self, vocabulary_size: int, device: torch.device) -> None:
        on_cpu = device.type == "cpu"
        self.vocabulary_size = vocabulary_size
        self.n_blocks = -(-vocabulary_size // BLOCK)
        width = self.n_blocks * BLOCK
        most = (CPU_ROWS, CPU_NUMBERS) if on_cpu else (GPU_ROWS, GPU_NUMBERS)
        self.n_rows = max(1, min(most[0], most[1] // width))
        self.shifted_CP = torch.zeros(self.n_rows, width, device=device)
        self.shifted_CP[:, vocabulary_size:] = NOTHING
        self.powers_CP = torch.zeros_like(self.shifted_CP)
        self.spare_CP = torch.zeros_like(self.shifted_CP)
        self.masses_CP = torch.zeros_like(self.shifted_CP, dtype=torch.int32)
        self.total_C = torch.ones(self.n_rows, device=device)
        self._temperature = 0.0

    def load(self, logits_RV: Tensor) -> Tensor:
        """Load at most `n_rows` rows; return for each whether all its logits are finite or minus infinity."""
        rows = self.shifted_CP[: len(logits_RV), : self.vocabulary_size]
        top_R = logits_RV.amax(dim=1, keepdim=True).float()
        torch.sub(logits_RV, top_R, out=rows)
        rows.clamp_(min=NOTHING)
        self._temperature = 0.0
        return top_R.squeeze(1).isfinite()

    def at(self, temperature: float) -> None:
        """Set `powers` and their `total` to a temperature; from two or four times that temperature by squaring."""
        squarings = {2.0: 1, 4.0: 2}.get(self._temperature / temperature, 0)
        for _ in range(squarings):
            torch.mul(self.powers_CP, self.powers_CP, out=self.powers_CP)
        if not squarings:
            torch.mul(self.shifted_CP, 1 / temperature, out=self.powers_CP)
            torch.exp(self.powers_CP, out=self.powers_CP)
        torch.sum(self.powers_CP, dim=1, out=self.total_C)
        self._temperature = temperature

    def top(self, k: int) -> Tensor:
        """The ids of the k largest logits, largest first, equal ones by ascending id.

        They are within the k blocks whose largest logits are largest.
        """
        if self.n_blocks <= k:
            return _largest(self.shifted_CP, torch.arange(self.shifted_CP.shape[1], device=self.shifted_CP.device), k)
        blocks_CBP = self.shifted_CP.view(self.n_rows, self.n_blocks, BLOCK)
        numbers = torch.arange(self.n_blocks, device=self.shifted_CP.device)
        best_CK = _largest(blocks_CBP.amax(dim=2), numbers, k)
        values = self.in_blocks(self.shifted_CP, best_CK).view(self.n_rows, k * BLOCK)
        inside = torch.arange(BLOCK, device=self.shifted_CP.device)
        return _largest(values, (best_CK[:, :, None] * BLOCK + inside).view(self.n_rows, k * BLOCK), k)

    def in_blocks(self, values_CP: Tensor, blocks_CS: Tensor) -> Tensor:
        """The numbers of some blocks of each row."""
        first_C1 = torch.arange(self.n_rows, device=blocks_CS.device)[:, None] * self.n_blocks
        flat = values_CP.view(self.n_rows * self.n_blocks, BLOCK)
        return flat.index_select(0, (blocks_CS + first_C1).view(-1)).view(*blocks_CS.shape, BLOCK)

    def total_without(self, ids_CK: Tensor, is_exact_CK: Tensor) -> Tensor:
        """The sum of `powers` over all ids but the exact ones; not 1 minus their sum, which cancels."""
        own_CK = self.powers_CP.gather(1, ids_CK).masked_fill(~is_exact_CK, 0.0)
        self.powers_CP.scatter_add_(1, ids_CK, -own_CK)
        rest_C = self.powers_CP.sum(dim=1)
        self.powers_CP.scatter_add_(1, ids_CK, own_CK)
        return rest_C

    def total_of(self, weights_P: Tensor) -> Tensor:
        """The sum of `powers` times a weight for each id."""
        torch.mul(self.powers_CP, weights_P, out=self.spare_CP)
        return self.spare_CP.sum(dim=1).double()

    def mean_shifted(self) -> Tensor:
        """The mean of the shifted logits under `powers`."""
        torch.mul(self.powers_CP, self.shifted_CP, out=self.spare_CP)
        return self.spare_CP.sum(dim=1).double() / self.total_C


def _largest(values: Tensor, ids: Tensor, k: int) -> Tensor:
    """The ids of the k largest of numbers that are at most 0: their bits grow with the distance from 0."""
    keys = ((values.view(torch.int32) & _MAGNITUDE).long() << _ID_BITS) | ids
    return keys.topk(k, dim=1, largest=False)[0] & ((1 << _ID_BITS) - 1)
