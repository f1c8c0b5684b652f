"""New weights and biases for given frames, and the places where they contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from un.folding.frames import NOBODY, Frames, is_same
from un.folding.graph import Graph, LinearUse, Stored
from un.folding.solver import shift_through, spread


@dataclass
class Rewrite:
    """What changes in the model's stored tensors, in float64."""

    values: dict[str, Tensor] = field(default_factory=dict)  # name -> a parameter or buffer
    new_biases: dict[str, Tensor] = field(default_factory=dict)  # dotted name of a module without bias -> its bias
    touched: dict[int, list[str]] = field(default_factory=dict)  # site -> the weights and biases that took its map


def rewrite_weights(graph: Graph, frames: Frames) -> Rewrite:
    """Applies frames to every weight and bias that a linear map uses; adds to `frames.blamed` what contradicts."""
    rewriter = _Rewriter(frames)
    uses = [source for source in graph.sources if isinstance(source, LinearUse)]
    names = [{stored.name for stored in (use.stored, *use.biases)} for use in uses]
    changed = {name for use, of_use in zip(uses, names, strict=True) if rewriter.changes(use) for name in of_use}
    for use, of_use in zip(uses, names, strict=True):
        if not changed.isdisjoint(of_use):
            rewriter.rewrite(use)
    rewriter.finish(graph.raw_reads)
    return rewriter.result


@dataclass
class _Demand:
    """New elements of a stored tensor's memory, nan where none is asked for, and the codes that ask for them."""

    stored: Stored
    memory: Tensor
    codes: list[Tensor] = field(default_factory=list)


class _Rewriter:
    def __init__(self, frames: Frames) -> None:
        self.frames, self.result = frames, Rewrite()
        self._read_changed = (frames.scale != 1) | (frames.shift != 0)
        self._written_changed = (frames.row_scale != 1) | (frames.row_shift != 0)
        self._demands: dict[str, _Demand] = {}
        self._bias_codes: dict[str, list[Tensor]] = {}  # module that gets a bias -> codes whose frames ask for it

    def changes(self, use: LinearUse) -> bool:
        """Whether frames ask anything new of a linear map."""
        reads = use.inputs is not None and bool(self._read_changed[use.inputs].any())
        return reads or bool(self._written_changed[use.outputs].any())

    def rewrite(self, use: LinearUse) -> None:
        """Demands what one linear map needs of its weight and bias."""
        frames, outputs, weight = self.frames, use.outputs, use.weight.double()
        inputs = torch.zeros(weight.shape[1] * use.groups, dtype=torch.int64) if use.inputs is None else use.inputs
        codes = torch.cat((inputs, outputs))
        row_scale, added = frames.row_scale[outputs].to(weight), frames.row_shift[outputs].to(weight)
        new = weight
        if bool(self._read_changed[inputs].any()):
            new = weight * spread(frames.scale[inputs].to(weight), weight, use.groups)
            added = added + row_scale * shift_through(weight, frames.shift[inputs].to(weight), use.groups)
        if bool(self._written_changed[outputs].any()):
            new = new * row_scale.view(-1, *[1] * (weight.dim() - 1))
        memory = torch.arange(len(use.stored.memory), device=weight.device)
        positions = memory.as_strided(weight.size(), weight.stride(), use.weight.storage_offset())
        self._demand(use.stored, positions, new, codes)
        names = [use.stored.name, *self._rewrite_bias(use, row_scale, added, codes)]
        changed = torch.cat((inputs[self._read_changed[inputs]], outputs[self._written_changed[outputs]]))
        for site in torch.unique(frames.owner[changed]).tolist():
            if site != NOBODY:
                listed = self.result.touched.setdefault(site, [])
                listed.extend(name for name in names if name not in listed)

    def _rewrite_bias(self, use: LinearUse, scale: Tensor, added: Tensor, codes: Tensor) -> list[str]:
        """Demands scale * bias + added of a linear map's stored biases; returns their names."""
        if use.bias is None:
            return self._grow_bias(use, added, codes)
        names = []
        numbers = use.bias.to(scale.device)
        for stored in use.biases:
            if stored.persistent:
                mine = stored.holds(numbers)
                positions = numbers[mine] - stored.base
                self._demand(stored, positions, scale[mine] * stored.memory[positions] + added[mine], codes)
                names.append(stored.name)
        return names

    def _grow_bias(self, use: LinearUse, added: Tensor, codes: Tensor) -> list[str]:
        if not use.takes_bias:
            if bool((self.frames.row_shift[use.outputs] != 0).any()):
                self.frames.blame(codes, f"the linear map in {use.module} takes no bias")
            return []
        known = self.result.new_biases.setdefault(use.module, added)
        demanded = self._bias_codes.setdefault(use.module, [])
        demanded.append(codes)
        if not bool(is_same(known, added).all()):
            self.frames.blame(torch.cat(demanded), f"{use.module} has several inputs and would need several biases")
        return [f"{use.module}.bias"] if bool((added != 0).any()) else []

    def _demand(self, stored: Stored, positions: Tensor, new: Tensor, codes: Tensor) -> None:
        """Asks for new elements at positions in the memory of a stored tensor."""
        if stored.name not in self._demands:
            self._demands[stored.name] = _Demand(stored, torch.full_like(stored.memory, torch.nan).double())
        demand = self._demands[stored.name]
        demand.codes.append(codes)
        earlier = demand.memory[positions]
        demand.memory[positions] = new  # a position may be listed twice, as in an expanded weight
        same = earlier.isnan() | is_same(earlier, new)
        same &= new.isnan() | is_same(demand.memory[positions], new)
        if not bool(same.all()):
            reason = f"{stored.name} serves several inputs and would need several values"
            self.frames.blame(torch.cat(demand.codes), reason)

    def finish(self, raw_reads: Mapping[str, str]) -> None:
        """Drops what does not change, and blames where something else reads what does."""
        grown = self.result.new_biases
        self.result.new_biases = {name: bias for name, bias in grown.items() if bool((bias != 0).any())}
        for name, demand in self._demands.items():
            stored, old = demand.stored, demand.stored.memory.double()
            memory = torch.where(demand.memory.isnan(), old, demand.memory)
            if torch.equal(memory, old):
                continue
            if name in raw_reads:
                self.frames.blame(torch.cat(demand.codes), f"{name} is also read by {raw_reads[name]}")
            if not stored.persistent:
                self.frames.blame(torch.cat(demand.codes), f"{name} is not saved in a state dict")
            tensor = stored.tensor
            self.result.values[name] = memory.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
