"""Turns operations on tensors into a graph of channel codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, UntypedStorage, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from un.folding.codes import CodeMemory, find_kinds, find_rows, lay_along
from un.folding.graph import Catalog, Graph, LinearUse, Meeting, Need, NormCall, Padding, Read, Sum

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

    def note_precision(self, inputs: Any, out: Any) -> None:
        """Remembers whether floating-point values of float64 were turned into narrower ones."""
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if any(t.is_floating_point() and t.dtype != torch.float64 for t in outs):
            known = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
            self.graph.rounds |= any(t.dtype == torch.float64 for t in known)

    # --- readers ---

    def record_codes(self, codes: Tensor | None, reader: str, need: Need = Need.ITSELF) -> None:
        """Notes that something reads codes, if there are any."""
        if codes is not None:
            self.graph.reads.append(Read(self._list_codes(codes), reader, need))

    def record_read(self, tensors: Sequence[Tensor], reader: str, need: Need = Need.ITSELF) -> None:
        """Notes that something reads tensors."""
        for tensor in tensors:
            self.record_codes(self.codes.read(tensor), reader, need)
            self.record_raw_read(tensor, reader)

    def record_raw_read(self, tensor: Tensor, reader: str) -> None:
        """Notes that a stored tensor, or what a bias was put together from, is read other than by a linear map."""
        stored = self.catalog.find(tensor)
        numbers = self._numbers.get(tensor.untyped_storage())
        parts = [] if numbers is None else self.catalog.list_stored(numbers)
        for one in (*parts, *([] if stored is None else [stored])):
            self.graph.raw_reads.setdefault(one.name, reader)

    def record_unknown(self, reader: str) -> None:
        """Notes that something could read anything that has a code so far."""
        self.graph.reads.append(Read(torch.arange(1, self.graph.size), reader))

    def record_keys(self, key: Tensor, reader: str) -> None:
        """Notes that attention reads keys (..., N, D), to which the same shift may be added at all N positions."""
        codes = self.codes.read(key)
        if codes is not None:
            self.record_read([key], reader, Need.SAME_SCALE)
            self._record_meeting(codes[..., :1, :].expand_as(codes), codes, reader)

    def record_boundary(self, name: str, inputs: Any, out: Any) -> None:
        """Notes what goes into a module and what comes out of it."""
        for leaf in tree_leaves((inputs, out)):
            codes = self.codes.read(leaf) if isinstance(leaf, Tensor) and leaf.numel() else None
            if codes is not None:
                self.graph.boundaries.setdefault(name, []).append(self._list_codes(codes))
                if leaf is out:
                    self.graph.outputs.setdefault(name, []).append(self._list_codes(codes))

    # --- values of different origin in one place ---

    def _record_meeting(self, left: Tensor, right: Tensor, reader: str) -> None:
        differ = left != right
        if bool(differ.any()):
            pairs = torch.unique(left[differ].long() * self.graph.size + right[differ].long()).cpu()
            self.graph.meetings.append(Meeting(pairs // self.graph.size, pairs % self.graph.size, reader))

    def record_selection(self, codes: Tensor, dims: Sequence[int], reader: str) -> None:
        """Notes that any position along some axes may be picked instead of another."""
        first = codes
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        self._record_meeting(first.expand_as(codes), codes, reader)

    def record_choice(self, operands: Sequence[Tensor | None], shape: torch.Size, reader: str) -> Tensor:
        """Notes that each value is that of any of the operands, codes that broadcast or None for a literal zero.

        Returns:
            The codes of the result.
        """
        wide = [codes.expand(shape) for codes in operands if codes is not None]
        chosen = wide[0]
        for other in wide[1:]:
            self._record_meeting(chosen, other, reader)
            chosen = torch.where(chosen != 0, chosen, other)
        if len(wide) < len(operands):
            self.record_codes(chosen, reader, Need.NO_SHIFT)
        return chosen

    def record_mixture(self, codes: Tensor, reader: str) -> None:
        """Notes that foreign values may stand anywhere among these."""
        known = self._list_codes(codes)
        self.graph.meetings.append(Meeting(known, torch.zeros_like(known), reader))

    def record_absent(self, part: Tensor, absent: Tensor, dim: int, reader: str) -> None:
        """Notes that `absent`, which is empty here, may stand beside `part` along an axis."""
        codes, beside = self.codes.read(part), self.codes.read_beside(absent)
        if codes is not None and beside is not None and codes.narrow(dim, 0, 1).shape == beside.shape:
            self._record_meeting(codes.narrow(dim, 0, 1), beside, reader)
            return
        for mixed in (codes, beside):
            if mixed is not None:
                self.record_mixture(mixed, reader)

    # --- sources of codes ---

    def record_norm(self, site: int, x: Tensor, out: Tensor, axis: int, more_arguments: bool) -> None:
        """Notes one call of a norm and codes its output: one code per channel and code of the input."""
        size = x.shape[axis]
        codes = self.codes.read(x)
        channels = lay_along(torch.arange(size, device=x.device), x, axis)
        pairs = channels if codes is None else codes.long() * size + channels
        kinds, positions = find_kinds(pairs, axis) if x.numel() else (torch.arange(size), pairs)
        inputs, of_channel = (kinds // size).cpu(), (kinds % size).cpu()
        base = self.graph.allocate(len(kinds))
        call = NormCall(base, len(kinds), site, inputs, of_channel, x.dim(), more_arguments)
        self.graph.sources.append(call)
        if x.numel():
            self.codes.write(out, positions + base)
        else:
            self.graph.reads.append(Read(call.outputs, f"whatever reads {self.module}, which {NO_ROW}"))

    def record_sum(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        """Notes an addition and codes its result; the operands may broadcast."""
        sides = []
        for tensor in (left, right):
            self.record_raw_read(tensor, f"addition in {self.module}")
            codes = self.codes.read(tensor)
            sides.append(torch.zeros((), device=out.device).long() if codes is None else codes.long())
        if not any(bool(codes.any()) for codes in sides):
            return
        size = self.graph.size
        kinds, positions = find_kinds((sides[0] * size + sides[1]).expand(out.shape), -1)
        lefts, rights = (kinds // size).cpu(), (kinds % size).cpu()
        known = (lefts != 0) | (rights != 0)
        count = int(known.sum())
        base = self.graph.allocate(count)
        new_codes = torch.where(known, base + known.cumsum(0) - 1, 0)
        self.graph.sources.append(Sum(base, count, lefts[known], rights[known], self.module))
        self.codes.write(out, new_codes.to(out.device)[positions])

    def record_mean(self, x: Tensor, dims: list[int], out: Tensor, reader: str, need: Need | None) -> None:
        """Notes a mean or maximum over axes: all codes met along them must mean the same map."""
        codes = self.codes.read(x)
        if codes is None:
            return
        first = codes.amin(dims, keepdim=True)
        self._record_meeting(first.expand_as(codes), codes, reader)
        if need is not None:
            self.record_codes(codes, reader, need)
        self.codes.write(out, first.reshape(out.shape))

    def record_linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, axis: int, groups: int
    ) -> None:
        """Notes one linear map over an axis of x with a stored weight, and codes its output along the same axis."""
        stored = self.catalog.find(weight)
        assert stored is not None  # callers ask before
        size = weight.shape[0]
        numbers = None
        if bias is not None:
            located = self._locate_bias(bias)
            numbers = torch.full((size,), -1) if located is None else located.cpu()
        module = self.calls[-1].module
        takes_bias = (
            isinstance(module, nn.Linear | _ConvNd)
            and module.bias is None
            and self.catalog.find(module.weight) is stored
            and bias is None
        )
        inputs = self._read_row(x, axis)
        base = self.graph.allocate(size)
        use = LinearUse(base, size, stored, weight, inputs, numbers, self.module, takes_bias, groups)
        self.graph.sources.append(use)
        self.codes.write(out, lay_along(torch.arange(base, base + size, device=out.device), out, axis))

    def record_fill(self, x: Tensor, axis: int, value: float, out: Tensor) -> None:
        """Notes a call of `F.pad` with a constant, and codes its output: padding has the codes of its channel."""
        codes = self.codes.read(x)
        assert codes is not None  # callers ask before
        row = codes.movedim(axis, -1).reshape(-1, x.shape[axis])[0]
        call = self.calls[-1]
        index, reader = call.num_paddings - 1, f"padding in {self.module}"
        self.graph.paddings.append(Padding(call.name, index, axis, x.dim(), row.long().cpu(), value, reader))
        self.record_raw_read(x, reader)
        self.codes.write(out, lay_along(row, out, axis))

    def record_concatenated_bias(self, parts: Sequence[Tensor], out: Tensor) -> bool:
        """Remembers where the elements of concatenated vectors are stored; False where none is."""
        numbers = [self._locate_bias(part) for part in parts]
        if all(of_part is None for of_part in numbers) or any(part.dim() != 1 for part in parts):
            return False
        filled = [
            torch.full_like(part, -1, dtype=torch.int64) if of_part is None else of_part
            for part, of_part in zip(parts, numbers, strict=True)
        ]
        self._numbers[out.untyped_storage()] = torch.cat(filled)
        return True

    def _locate_bias(self, tensor: Tensor) -> Tensor | None:
        """Returns the number of the stored element behind each element of a bias, -1 for none; None if not stored."""
        known = self._numbers.get(tensor.untyped_storage())
        if known is None:
            return self.catalog.number(tensor)
        return known.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def _read_row(self, x: Tensor, axis: int) -> Tensor | None:
        """Returns the code of each channel of a linear map's input; notes a meeting where positions differ."""
        reader = f"linear map in {self.module}"
        codes = self.codes.read(x) if x.numel() else self.codes.read_beside(x)
        if codes is None:
            if not x.numel():
                self.record_unknown(f"{reader}, which {NO_ROW}")
            return None
        rows, _ = find_rows(codes, axis)
        self._record_meeting(rows[:1].expand_as(rows), rows, reader)
        return rows[0].long().cpu()

    def _list_codes(self, codes: Tensor) -> Tensor:
        """Returns the different codes of a tensor, without 0."""
        present = torch.zeros(self.graph.size, dtype=torch.bool, device=codes.device)
        present.index_fill_(0, codes.flatten().long(), True)
        present[0] = False
        return present.nonzero().flatten().cpu()
