"""Codes beside the elements of the tensors that a trace follows."""

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

    def read_filled(self, tensor: Tensor) -> Tensor:
        """Returns the codes in the tensor's shape, 0 where it has none."""
        codes = self.read(tensor)
        nothing = torch.zeros((), dtype=torch.float64, device=tensor.device)
        return nothing.expand(tensor.shape) if codes is None else codes

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
