"""Shadow memory: a code beside every element of the tensors a trace follows, shared by views as the values are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from un.folding.graph import count_stored, identify_storage

CLEAN_EVERY = 256  # writes between removals of codes whose tensors are gone


class Shadow:
    """Codes by storage, as float64: every operation that moves values then moves codes, whole numbers below 2^53."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[StorageWeakRef, Tensor, int]] = {}
        self._writes = 0

    def read(self, tensor: Tensor) -> Tensor | None:
        """The codes in the tensor's shape, or None where it has none."""
        entry = self._entries.get(identify_storage(tensor))
        if entry is None or entry[2] != tensor.element_size():
            return None
        return entry[1].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def read_all(self, tensor: Tensor) -> Tensor | None:
        """All codes in the memory behind a tensor, which may be an empty view of it."""
        entry = self._entries.get(identify_storage(tensor))
        return None if entry is None else entry[1]

    def read_beside(self, tensor: Tensor) -> Tensor | None:
        """The codes that an empty view would have with one row where it has none; None where its memory has none."""
        entry = self._entries.get(identify_storage(tensor))
        if entry is None or entry[2] != tensor.element_size():
            return None
        size = [max(length, 1) for length in tensor.size()]
        last = sum((length - 1) * stride for length, stride in zip(size, tensor.stride(), strict=True))
        offset = int(tensor.storage_offset())
        steps = [stride for length, stride in zip(tensor.size(), tensor.stride(), strict=True) if not length]
        if offset + last >= len(entry[1]):  # behind the end: the row before it
            offset -= max(steps)
        return entry[1].as_strided(size, tensor.stride(), offset) if offset >= 0 else None

    def write(self, tensor: Tensor, codes: Tensor) -> None:
        """Sets the codes of the memory that the tensor shows."""
        key = identify_storage(tensor)
        entry = self._entries.get(key)
        if entry is None or entry[2] != tensor.element_size():
            memory = torch.zeros(count_stored(tensor), dtype=torch.float64, device=tensor.device)
            entry = (StorageWeakRef(tensor.untyped_storage()), memory, tensor.element_size())
            self._entries[key] = entry
        entry[1].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset()).copy_(codes)
        self._writes += 1
        if self._writes % CLEAN_EVERY == 0:
            self._entries = {key: entry for key, entry in self._entries.items() if not entry[0].expired()}
