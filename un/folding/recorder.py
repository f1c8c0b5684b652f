"""Turns operations on tensors into a graph of channel codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from un.folding.graph import Catalog, Graph, LinearUse, Meeting, NormCall, Padding, Place, Read, Sum, identify_storage
from un.folding.shadow import Shadow

MAX_KINDS_OF_ROWS = 32  # different rows of channels a linear layer may see; more means that it mixes another axis
NO_ROW = "gets no row of the example"


@dataclass
class ModuleCall:
    """A module that is running: its dotted name, and how often `F.pad` has been called in it."""

    name: str
    module: nn.Module
    num_paddings: int = 0


class Recorder:
    """Codes and graph of one trace.

    Args:
        model: the traced copy.
    """

    def __init__(self, model: nn.Module) -> None:
        self.catalog = Catalog(model)
        self.shadow = Shadow()
        self.graph = Graph()
        self.numbers: dict[int, tuple[Tensor, Tensor]] = {}  # storage of a computed bias -> (it, stored numbers)
        self.calls: list[ModuleCall] = [ModuleCall("", model)]
        self.boundaries: dict[str, list[Tensor]] = {}  # module with a twin -> codes that went in or came out

    @property
    def module(self) -> str:
        """The innermost module running."""
        return self.calls[-1].name or "the model"

    def describe(self, func: Any) -> str:
        """An operation and where it runs, e.g. "relu in blocks.0.mlp.act"."""
        return f"{func.overloadpacket.__name__} in {self.module}"

    def note_precision(self, inputs: Any, out: Any) -> None:
        """Remembers whether floating-point values of float64 were turned into narrower ones."""
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if any(t.is_floating_point() and t.dtype != torch.float64 for t in outs):
            known = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
            self.graph.rounds |= any(t.dtype == torch.float64 for t in known)

    def forget(self, tensor: Tensor) -> None:
        """Takes the codes away from a tensor that holds new values."""
        if tensor.numel() and self.shadow.read(tensor) is not None:
            self.shadow.write(tensor, torch.zeros((), dtype=torch.float64, device=tensor.device))

    def record_read(self, tensors: Sequence[Tensor], reader: str) -> None:
        """Notes that something not understood reads these tensors."""
        for tensor in tensors:
            codes = self.shadow.read(tensor)
            if codes is not None:
                self.graph.reads.append(Read(self.list_codes(codes), reader))
            self.record_raw_read(tensor, reader)

    def record_memory_read(self, tensor: Tensor, reader: str) -> None:
        """Notes that something not understood could meet any value in the memory behind a tensor."""
        codes = self.shadow.read_all(tensor)
        if codes is not None:
            self.graph.reads.append(Read(self.list_codes(codes), reader))

    def record_keys(self, key: Tensor, reader: str) -> None:
        """Notes that attention reads keys (..., N, D), to which the same shift may be added at all N positions."""
        codes = self.shadow.read(key)
        if codes is None:
            return
        self.graph.keys.append(Read(self.list_codes(codes), reader))
        self._record_meeting(codes[..., :1, :].expand_as(codes), codes, reader)
        self.record_raw_read(key, reader)

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
            self.graph.padded.append(Read(self.list_codes(chosen), reader))
        return chosen

    def record_mixture(self, codes: Tensor, reader: str) -> None:
        """Notes that foreign values may stand anywhere among these."""
        known = self.list_codes(codes)
        self.graph.meetings.append(Meeting(known, torch.zeros_like(known), reader))

    def record_absent(self, part: Tensor, absent: Tensor, dim: int, reader: str) -> None:
        """Notes that `absent`, which is empty here, may stand beside `part` along an axis."""
        codes, beside = self.shadow.read(part), self.shadow.read_beside(absent)
        if codes is None and beside is None:
            return
        if codes is not None and beside is not None and codes.narrow(dim, 0, 1).shape == beside.shape:
            self._record_meeting(codes.narrow(dim, 0, 1), beside, reader)
            return
        for mixed in (codes, beside):
            if mixed is not None:
                self.record_mixture(mixed, reader)

    def record_raw_read(self, tensor: Tensor, reader: str) -> None:
        """Notes that a stored tensor, or what a bias was put together from, is read other than by a linear map."""
        stored = self.catalog.find(tensor)
        if stored is not None:
            self.graph.raw_reads.setdefault(stored.name, reader)
        known = self.numbers.get(identify_storage(tensor))
        for stored in self.catalog.list_stored(known[1]) if known is not None else ():
            self.graph.raw_reads.setdefault(stored.name, reader)

    def locate_bias(self, tensor: Tensor) -> Tensor | None:
        """The number of the stored element behind each element of a bias; -1 for none; None if it is not stored."""
        known = self.numbers.get(identify_storage(tensor))
        if known is None:
            return self.catalog.number(tensor)
        return known[1].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def record_concatenated_bias(self, parts: Sequence[Tensor], out: Tensor) -> bool:
        """Remembers where the elements of concatenated vectors are stored; False where none is."""
        numbers = [self.locate_bias(part) for part in parts]
        if all(of_part is None for of_part in numbers) or any(part.dim() != 1 for part in parts):
            return False
        filled = [
            torch.full_like(part, -1, dtype=torch.int64) if of_part is None else of_part
            for part, of_part in zip(parts, numbers, strict=True)
        ]
        self.numbers[identify_storage(out)] = (out, torch.cat(filled))
        return True

    def record_linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, axis: int, groups: int
    ) -> None:
        """Notes one linear map over an axis of x with a stored weight, and codes its output along the same axis."""
        stored = self.catalog.find(weight)
        assert stored is not None  # callers ask before
        size = weight.shape[0]
        place = Place(stored.name, tuple(weight.size()), tuple(weight.stride()), int(weight.storage_offset()))
        numbers = None
        if bias is not None:
            located = self.locate_bias(bias)
            numbers = torch.full((size,), -1) if located is None else located.cpu()
        module = self.calls[-1].module
        takes_bias = (
            isinstance(module, nn.Linear | _ConvNd)
            and module.bias is None
            and self.catalog.find(module.weight) is stored
            and bias is None
        )
        inputs = self._read_rows(x, axis)
        base = self.graph.allocate(size)
        self.graph.sources.append(LinearUse(place, inputs, numbers, self.module, takes_bias, groups, base, size))
        self.shadow.write(out, along(torch.arange(base, base + size, device=out.device), out, axis))

    def record_padding(self, x: Tensor, reader: str) -> None:
        """Notes that zeros are added at the border of x."""
        codes = self.shadow.read(x)
        if codes is not None:
            self.graph.padded.append(Read(self.list_codes(codes), reader))

    def record_fill(self, x: Tensor, axis: int, value: float, out: Tensor) -> None:
        """Notes a call of `F.pad` with a constant, and codes its output: padding has the codes of its channel."""
        codes = self.shadow.read(x)
        assert codes is not None  # callers ask before
        row = codes.movedim(axis, -1).reshape(-1, x.shape[axis])[0]
        call = self.calls[-1]
        index, reader = call.num_paddings - 1, f"padding in {self.module}"
        self.graph.paddings.append(Padding(call.name, index, axis, x.dim(), row.long().cpu(), value, reader))
        self.record_raw_read(x, reader)
        self.shadow.write(out, along(row, out, axis))

    def record_output(self, name: str, out: Any) -> None:
        """Notes what comes out of a module."""
        codes = self.shadow.read(out) if isinstance(out, Tensor) and out.numel() else None
        if codes is not None:
            self.graph.outputs.append(Read(self.list_codes(codes), name))

    def record_boundary(self, name: str, values: Any) -> None:
        """Notes what goes into a module or comes out of it."""
        for leaf in tree_leaves(values):
            codes = self.shadow.read(leaf) if isinstance(leaf, Tensor) and leaf.numel() else None
            if codes is not None:
                self.boundaries.setdefault(name, []).append(self.list_codes(codes))

    def record_norm(self, site: int, x: Tensor, out: Tensor, axis: int, more_arguments: bool) -> None:
        """Notes one call of a norm and codes its output: one code per channel and code of the input."""
        size = x.shape[axis]
        codes = self.shadow.read(x)
        channels = along(torch.arange(size, device=x.device), x, axis)
        pairs = channels if codes is None else codes.long() * size + channels
        kinds, positions = list_kinds(pairs, axis) if x.numel() else (torch.arange(size), pairs)
        base = self.graph.allocate(len(kinds))
        call = NormCall(site, (kinds // size).cpu(), (kinds % size).cpu(), base, x.dim(), more_arguments)
        self.graph.sources.append(call)
        if x.numel():
            self.shadow.write(out, positions + base)
        else:
            self.graph.reads.append(Read(call.outputs, f"whatever reads {self.module}, which {NO_ROW}"))

    def record_sum(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        """Notes an addition and codes its result; the operands may broadcast."""
        codes = [self.shadow.read(tensor) for tensor in (left, right)]
        for tensor in (left, right):
            self.record_raw_read(tensor, f"addition in {self.module}")
        if all(of_one is None or not bool(of_one.any()) for of_one in codes):
            return
        wide = [
            torch.zeros(out.shape, dtype=torch.int64, device=out.device) if c is None else c.long().expand(out.shape)
            for c in codes
        ]
        pairs = wide[0] * self.graph.size + wide[1]
        kinds, positions = list_kinds(pairs, -1)
        lefts, rights = (kinds // self.graph.size).cpu(), (kinds % self.graph.size).cpu()
        known = (lefts != 0) | (rights != 0)
        count = int(known.sum())
        base = self.graph.allocate(count)
        new_codes = torch.where(known, base + known.cumsum(0) - 1, 0)
        self.graph.sources.append(Sum(lefts[known], rights[known], self.module, base))
        self.shadow.write(out, new_codes.to(out.device)[positions])

    def record_mean(self, x: Tensor, dims: list[int], out: Tensor, ordered: bool, reader: str) -> None:
        """Notes a mean or maximum over axes: all codes met along them must mean the same map."""
        codes = self.shadow.read(x)
        if codes is None:
            return
        first = codes.amin(dims, keepdim=True)
        self._record_meeting(first.expand_as(codes), codes, reader)
        if ordered:
            self.graph.ordered.append(Read(self.list_codes(codes), reader))
        self.shadow.write(out, first.reshape(out.shape))

    def _read_rows(self, x: Tensor, axis: int) -> Tensor | None:
        """The code of each channel of a linear map's input, and a meeting where positions differ."""
        reader = f"linear map in {self.module}"
        codes = self.shadow.read(x) if x.numel() else self.shadow.read_beside(x)
        if codes is None:
            if not x.numel():
                self.record_unknown(f"{reader}, which {NO_ROW}")
            return None
        rows, _ = find_rows(codes, axis)
        if len(rows) > MAX_KINDS_OF_ROWS and len(find_rows(self._name_channels(rows), -1)[0]) > MAX_KINDS_OF_ROWS:
            self.graph.reads.append(Read(self.list_codes(codes), f"{reader}, which mixes another axis"))
            return None
        self._record_meeting(rows[:1].expand_as(rows), rows, reader)
        return rows[0].long().cpu()

    def record_unknown(self, reader: str) -> None:
        """Notes that something could read anything that has a code so far."""
        self.graph.reads.append(Read(torch.arange(1, self.graph.size), reader))

    def _name_channels(self, rows: Tensor) -> Tensor:
        """Codes, with one number for all codes of one channel of a norm, whatever it has read there."""
        names = torch.arange(self.graph.size)
        for call in self.graph.sources:
            if isinstance(call, NormCall):
                first = torch.full((int(call.channels.max()) + 1,), self.graph.size)
                first.scatter_reduce_(0, call.channels, call.outputs, "amin")
                names[call.outputs] = first[call.channels]
        return names[rows.long().cpu()]

    def _record_meeting(self, left: Tensor, right: Tensor, reader: str) -> None:
        differ = left != right
        if bool(differ.any()):
            pairs = torch.unique(left[differ].long() * self.graph.size + right[differ].long()).cpu()
            self.graph.meetings.append(Meeting(pairs // self.graph.size, pairs % self.graph.size, reader))

    def list_codes(self, codes: Tensor) -> Tensor:
        """The different codes of a tensor, without 0."""
        present = torch.zeros(self.graph.size, dtype=torch.bool, device=codes.device)
        present.index_fill_(0, codes.flatten().long(), True)
        present[0] = False
        return present.nonzero().flatten().cpu()


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
