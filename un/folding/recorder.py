"""What the rules of operations share: the codes of tensors, and notes in the graph of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._pytree import tree_leaves

from un.folding.codes import CodeMemory
from un.folding.graph import Catalog, Graph, Meeting, Need, Read

NO_ROW = "gets no row of the example"


@dataclass
class ModuleCall:
    """A module that is running: its dotted name, and how often `F.pad` has been called in it."""

    name: str
    module: nn.Module
    num_paddings: int = 0


class Recorder:
    """Codes and graph of one trace of a model's copy."""

    def __init__(self, model: nn.Module) -> None:
        self.catalog = Catalog(model)
        self.codes = CodeMemory()
        self.graph = Graph()
        self.calls: list[ModuleCall] = [ModuleCall("", model)]
        # Numbers of the stored elements behind biases that are put together from parts.
        self._numbers: WeakKeyDictionary[UntypedStorage, Tensor] = WeakKeyDictionary()

    @property
    def module(self) -> str:
        """The innermost module running."""
        return self.calls[-1].name or "the model"

    def describe(self, func: Any) -> str:
        """Returns an operation and where it runs, e.g. "relu in blocks.0.mlp.act"."""
        return f"{func.overloadpacket.__name__} in {self.module}"

    def has_codes(self, tensors: Sequence[Tensor]) -> bool:
        return any(self.codes.read(tensor) is not None for tensor in tensors)

    def note_precision(self, inputs: Any, out: Any) -> None:
        """Remembers whether floating-point values of float64 were turned into narrower ones."""
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if any(t.is_floating_point() and t.dtype != torch.float64 for t in outs):
            known = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
            self.graph.rounds |= any(t.dtype == torch.float64 for t in known)

    def note_codes(self, codes: Tensor | None, reader: str, need: Need = Need.ITSELF) -> None:
        """Notes that something reads codes, if there are any."""
        if codes is not None:
            self.graph.reads.append(Read(self._list_codes(codes), reader, need))

    def note_read(self, tensors: Sequence[Tensor], reader: str, need: Need = Need.ITSELF) -> None:
        """Notes that something reads tensors."""
        for tensor in tensors:
            self.note_codes(self.codes.read(tensor), reader, need)
            self.note_raw_read(tensor, reader)

    def note_raw_read(self, tensor: Tensor, reader: str) -> None:
        """Notes that a stored tensor, or what a bias was put together from, is read other than by a linear map."""
        stored = self.catalog.find(tensor)
        numbers = self._numbers.get(tensor.untyped_storage())
        parts = () if numbers is None else self.catalog.list_stored(numbers)
        for one in (*parts, *([] if stored is None else [stored])):
            self.graph.raw_reads.setdefault(one.name, reader)

    def note_meeting(self, left: Tensor, right: Tensor, reader: str) -> None:
        """Notes that a reader treats codes alike with those in the same place, `left` as often as `right` has it."""
        left = left.expand_as(right)
        differ = left != right
        if bool(differ.any()):
            pairs = torch.unique(left[differ].long() * self.graph.size + right[differ].long()).cpu()
            self.graph.meetings.append(Meeting(pairs // self.graph.size, pairs % self.graph.size, reader))

    def note_boundary(self, name: str, inputs: Any, out: Any) -> None:
        """Notes what goes into a module and what comes out of it."""
        for leaf in tree_leaves((inputs, out)):
            codes = self.codes.read(leaf) if isinstance(leaf, Tensor) and leaf.numel() else None
            if codes is not None:
                self.graph.boundaries.setdefault(name, []).append(self._list_codes(codes))
                if leaf is out:
                    self.graph.outputs.setdefault(name, []).append(self._list_codes(codes))

    def note_concatenated_bias(self, parts: Sequence[Tensor], out: Tensor) -> bool:
        """Remembers where the elements of concatenated vectors are stored; False where none is."""
        numbers = [self.locate_bias(part) for part in parts]
        if all(of_part is None for of_part in numbers) or any(part.dim() != 1 for part in parts):
            return False
        filled = [
            torch.full_like(part, -1, dtype=torch.int64) if of_part is None else of_part
            for part, of_part in zip(parts, numbers, strict=True)
        ]
        self._numbers[out.untyped_storage()] = torch.cat(filled)
        return True

    def locate_bias(self, tensor: Tensor) -> Tensor | None:
        """Returns the number of the stored element behind each element of a bias, -1 for none; None if not stored."""
        known = self._numbers.get(tensor.untyped_storage())
        if known is None:
            return self.catalog.number(tensor)
        return known.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def _list_codes(self, codes: Tensor) -> Tensor:
        """Returns the different codes of a tensor, without 0."""
        present = torch.zeros(self.graph.size, dtype=torch.bool, device=codes.device)
        present.index_fill_(0, codes.flatten().long(), True)
        present[0] = False
        return present.nonzero().flatten().cpu()
