"""States scaled to unit size and compared, in float32.

In: rows of the student's states and of the teacher's cached vectors. Out: sums over rows, or one number per group.
Every vector is divided by its root mean square first: a few positions of a sequence have states a thousand times as
long as others, and would dominate. A vector of zeros stays zero: its similarity to anything is 0, and only its map gets
a gradient. Comparisons are written so that NaN stays NaN, for the guard to find.
"""

import torch
from torch import Tensor

# Mean squares below count as 0: float32 has no digits left there.
SMALLEST_SQUARE = 1e-30
# The share of a sum of squares that rounding alone can leave around the mean.
ROUNDING = 1e-12


def unit(vectors: Tensor) -> Tensor:
    """Each row with a root mean square of 1; zeros stay zeros."""
    square = vectors.square().mean(dim=-1, keepdim=True)
    is_zero = square <= SMALLEST_SQUARE
    return torch.where(is_zero, 0.0, vectors * torch.where(is_zero, 1.0, square).rsqrt())


def cosine(mapped_NW: Tensor, teacher_NW: Tensor) -> Tensor:
    """The sum over rows of 1 - cos(x, y), with unit rows y."""
    return (1 - (unit(mapped_NW) * teacher_NW).mean(dim=1)).sum()


def mse(mapped_NW: Tensor, teacher_NW: Tensor) -> Tensor:
    """The sum over rows of mean (x - y)^2, with unit rows y: the square error as a share of the teacher's square."""
    return (mapped_NW - teacher_NW).square().mean(dim=1).sum()


def correlation(mapped_GW: Tensor, teacher_GW: Tensor) -> Tensor:
    """1 - r, averaged over dimensions; r is Pearson's over the rows of a group, 0 where either side is constant."""
    return 1 - (_centered_unit(mapped_GW) * _centered_unit(teacher_GW)).mean(dim=0).mean()


def linear_cka(student_GH: Tensor, teacher_GW: Tensor) -> Tensor:
    """1 - |Yc' Xc|^2 / (|Xc' Xc| |Yc' Yc|) over the rows of a group, columns centered: 1 if either side is constant."""
    student_GH, teacher_GW = _centered(student_GH), _centered(teacher_GW)
    both = (teacher_GW.T @ student_GH).square().sum()
    own = _own_products(student_GH) * _own_products(teacher_GW)
    is_zero = own == 0
    return 1 - torch.where(is_zero, 0.0, both / torch.where(is_zero, 1.0, own).sqrt())


def _own_products(rows_GW: Tensor) -> Tensor:
    """|X' X|^2, by the smaller of X' X and X X', which have the same norm."""
    products = rows_GW @ rows_GW.T if rows_GW.shape[0] < rows_GW.shape[1] else rows_GW.T @ rows_GW
    return products.square().sum()


def _centered(rows_GW: Tensor) -> Tensor:
    """Minus the mean of each column; a constant column is exactly 0."""
    around_GW = rows_GW - rows_GW.mean(dim=0)
    is_constant_W = around_GW.square().sum(dim=0) <= ROUNDING * rows_GW.square().sum(dim=0)
    return torch.where(is_constant_W, 0.0, around_GW)


def _centered_unit(rows_GW: Tensor) -> Tensor:
    return unit(_centered(rows_GW).T).T
