"""Codes laid out along axes, and the few different rows that most tensors of codes repeat."""

from __future__ import annotations

import torch
from torch import Tensor


def along(values: Tensor, like: Tensor, axis: int) -> Tensor:
    """A vector laid along one axis and repeated over the others, in the shape of `like`."""
    shape = [1] * like.dim()
    shape[axis] = -1
    return values.view(shape).expand(like.shape)


def find_rows(values: Tensor, axis: int) -> tuple[Tensor, Tensor | None]:
    """The different rows along an axis, (R, size), and the number of each row of `values`; None where R is 1."""
    rows = values.movedim(axis, -1).reshape(-1, values.shape[axis])
    if bool((rows == rows[:1]).all()):
        return rows[:1], None
    return torch.unique(rows, dim=0, return_inverse=True)


def list_kinds(pairs: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The different numbers in a tensor, and for each element the position of its number in that list.

    Most tensors repeat a few rows: only those are searched.
    """
    if pairs.dim() < 2 or not pairs.numel():
        return torch.unique(pairs, return_inverse=True)
    rows, numbers = find_rows(pairs, axis)
    kinds, positions = torch.unique(rows, return_inverse=True)
    moved = pairs.movedim(axis, -1).shape
    spread = positions.expand(moved) if numbers is None else positions[numbers].view(moved)
    return kinds, spread.movedim(-1, axis)
