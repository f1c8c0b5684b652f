"""Codes beside the elements of the tensors that a trace follows, and the few different rows that most repeat."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, UntypedStorage


class CodeMemory:
    """A code beside every element of a tensor's memory, so that views share codes as they share values.

    Codes are kept as float64: every operation that moves values moves them, too, exactly up to 2^53.
    """

    def __init__(self) -> None:
        self._memories: WeakKeyDictionary[UntypedStorage, tuple[Tensor, int]] = WeakKeyDictionary()

    def read(self, tensor: Tensor) -> Tensor | None:
        """Returns the codes in the tensor's shape, or None where it has none."""
        memory = self._find(tensor)
        return None if memory is None else memory.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def read_all(self, tensor: Tensor) -> Tensor | None:
        """Returns all codes in the memory behind a tensor, which may be an empty view of it."""
        return self._memories.get(tensor.untyped_storage(), (None, 0))[0]

    def read_beside(self, tensor: Tensor) -> Tensor | None:
        """Returns the codes that an empty view would have with one row where it has none; None without codes."""
        memory = self._find(tensor)
        if memory is None:
            return None
        size = [max(length, 1) for length in tensor.size()]
        last = sum((length - 1) * stride for length, stride in zip(size, tensor.stride(), strict=True))
        offset = int(tensor.storage_offset())
        if offset + last >= len(memory):  # behind the end: the row before it
            offset -= max(stride for length, stride in zip(tensor.size(), tensor.stride(), strict=True) if not length)
        return memory.as_strided(size, tensor.stride(), offset) if offset >= 0 else None

    def write(self, tensor: Tensor, codes: Tensor) -> None:
        memory = self._find(tensor)
        if memory is None:
            memory = torch.zeros(count_stored(tensor), dtype=torch.float64, device=tensor.device)
            self._memories[tensor.untyped_storage()] = memory, tensor.element_size()
        memory.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset()).copy_(codes)

    def forget(self, tensor: Tensor) -> None:
        """Takes the codes away from a tensor that holds new values."""
        if tensor.numel() and self.read(tensor) is not None:
            self.write(tensor, torch.zeros((), dtype=torch.float64, device=tensor.device))

    def _find(self, tensor: Tensor) -> Tensor | None:
        """Returns the codes behind a tensor, unless they were written for elements of another size."""
        memory, element_size = self._memories.get(tensor.untyped_storage(), (None, 0))
        return memory if element_size == tensor.element_size() else None


def count_stored(tensor: Tensor) -> int:
    """Returns the number of elements in the memory behind a tensor."""
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def lay_along(values: Tensor, like: Tensor, axis: int) -> Tensor:
    """Repeats a vector, laid along one axis, over the others, in the shape of `like`."""
    shape = [1] * like.dim()
    shape[axis] = -1
    return values.view(shape).expand(like.shape)


def find_rows(values: Tensor, axis: int) -> tuple[Tensor, Tensor | None]:
    """Returns the different rows along an axis, (R, size), and the number of each row; None where R is 1."""
    rows = values.movedim(axis, -1).reshape(-1, values.shape[axis])
    if bool((rows == rows[:1]).all()):
        return rows[:1], None
    return torch.unique(rows, dim=0, return_inverse=True)


def find_kinds(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Does what `torch.unique(values, return_inverse=True)` does, searching only the different rows along an axis."""
    if values.dim() < 2 or not values.numel():
        return torch.unique(values, return_inverse=True)
    rows, numbers = find_rows(values, axis)
    kinds, positions = torch.unique(rows, return_inverse=True)
    shape = values.movedim(axis, -1).shape
    spread = positions.expand(shape) if numbers is None else positions[numbers].view(shape)
    return kinds, spread.movedim(-1, axis)
