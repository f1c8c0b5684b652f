"""New weights and biases for given frames, and the places where they contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from un.folding.graph import Catalog, Graph, LinearUse, Stored, count_stored
from un.folding.solver import NOBODY, Frames, is_same, shift_through, spread


@dataclass
class Rewrite:
    """What changes in the model's stored tensors, in float64.

    Attributes:
        values: name -> a parameter or buffer.
        new_biases: dotted name of a module without bias -> its bias.
        touched: site -> names of the weights and biases that took its map.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    new_biases: dict[str, Tensor] = field(default_factory=dict)
    touched: dict[int, list[str]] = field(default_factory=dict)


def rewrite_weights(graph: Graph, catalog: Catalog, frames: Frames) -> Rewrite:
    """Applies frames to every weight and bias that a linear map uses; adds to `frames.blamed` what contradicts."""
    rewriter = _Rewriter(catalog, frames)
    uses = [source for source in graph.sources if isinstance(source, LinearUse)]
    names = {id(use): {use.weight.name, *(stored.name for stored in _list_biases(catalog, use))} for use in uses}
    changed = set().union(*(names[id(use)] for use in uses if rewriter.changes(use)))
    for use in uses:
        if not changed.isdisjoint(names[id(use)]):
            rewriter.rewrite(use)
    rewriter.finish(graph.raw_reads)
    return rewriter.result


def _list_biases(catalog: Catalog, use: LinearUse) -> list[Stored]:
    return [] if use.bias is None else catalog.list_stored(use.bias)


class _Rewriter:
    def __init__(self, catalog: Catalog, frames: Frames) -> None:
        self.catalog = catalog
        self.frames = frames
        self.result = Rewrite()
        self._read_changed = (frames.scale != 1) | (frames.shift != 0)
        self._written_changed = (frames.row_scale != 1) | (frames.row_shift != 0)
        self._memories: dict[str, Tensor] = {}  # name -> new elements, nan where nothing has been asked for
        self._codes: dict[str, list[Tensor]] = {}  # name -> codes whose frames changed it

    def changes(self, use: LinearUse) -> bool:
        """Whether frames ask anything new of a linear map."""
        reads = use.inputs is not None and bool(self._read_changed[use.inputs].any())
        return reads or bool(self._written_changed[use.outputs].any())

    def rewrite(self, use: LinearUse) -> None:
        """Demands what one linear map needs of its weight and bias."""
        frames, outputs = self.frames, use.outputs
        weight = use.weight.view(self.catalog.by_name[use.weight.name].tensor).double()
        inputs = torch.zeros(weight.shape[1] * use.groups, dtype=torch.int64) if use.inputs is None else use.inputs
        codes = torch.cat((inputs, outputs))
        row_scale, added = frames.row_scale[outputs].to(weight), frames.row_shift[outputs].to(weight)
        new = weight
        if bool(self._read_changed[inputs].any()):
            new = weight * spread(frames.scale[inputs].to(weight), weight, use.groups)
            added = added + row_scale * shift_through(weight, frames.shift[inputs].to(weight), use.groups)
        if bool(self._written_changed[outputs].any()):
            new = new * row_scale.view(-1, *[1] * (weight.dim() - 1))
        self._demand(use.weight.name, use.weight.view, new, codes)
        names = [use.weight.name, *self._rewrite_bias(use, row_scale, added, codes)]
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
        for stored in _list_biases(self.catalog, use):
            if not stored.persistent:
                continue
            mine = stored.holds(numbers)
            positions = numbers[mine] - stored.base
            old = stored.tensor.as_strided((count_stored(stored.tensor),), (1,), 0)[positions]
            self._demand(stored.name, positions, scale[mine] * old + added[mine], codes)
            names.append(stored.name)
        return names

    def _grow_bias(self, use: LinearUse, added: Tensor, codes: Tensor) -> list[str]:
        if not use.takes_bias:
            if bool((self.frames.row_shift[use.outputs] != 0).any()):
                self.frames.blame(codes, f"the linear map in {use.module} takes no bias")
            return []
        known = self.result.new_biases.setdefault(use.module, added)
        earlier = self._codes.setdefault(use.module, [])
        earlier.append(codes)
        if not bool(is_same(known, added).all()):
            self.frames.blame(torch.cat(earlier), f"{use.module} has several inputs and would need several biases")
        return [f"{use.module}.bias"] if bool((added != 0).any()) else []

    def _demand(self, name: str, where: object, new: Tensor, codes: Tensor) -> None:
        """Asks for new elements of a stored tensor; `where` makes a view of its memory or lists positions in it."""
        stored = self.catalog.by_name[name]
        first = name not in self._memories
        if first:
            size = count_stored(stored.tensor)
            self._memories[name] = torch.full((size,), torch.nan, dtype=torch.float64, device=stored.tensor.device)
        memory = self._memories[name]
        known = where(memory) if callable(where) else memory[where]  # type: ignore[index]
        if not first and not bool((known.isnan() | is_same(known, new)).all()):
            affected = torch.cat([codes, *self._codes[name]])
            self.frames.blame(affected, f"{name} serves several inputs and would need several values")
        if callable(where):
            known.copy_(new)
        else:
            memory[where] = new  # type: ignore[index]
        self._codes.setdefault(name, []).append(codes)

    def finish(self, raw_reads: Mapping[str, str]) -> None:
        """Drops what does not change, and blames where something else reads what does."""
        grown = self.result.new_biases
        self.result.new_biases = {name: bias for name, bias in grown.items() if bool((bias != 0).any())}
        for name in list(self._memories):
            stored, memory = self.catalog.by_name[name], self._memories.pop(name)
            old = stored.tensor.as_strided(memory.shape, (1,), 0).double()
            memory = torch.where(memory.isnan(), old, memory)
            if torch.equal(memory, old):
                continue
            if name in raw_reads:
                self.frames.blame(torch.cat(self._codes[name]), f"{name} is also read by {raw_reads[name]}")
            if not stored.persistent:
                self.frames.blame(torch.cat(self._codes[name]), f"{name} is not saved in a state dict")
            self.result.values[name] = memory.as_strided(
                stored.tensor.size(), stored.tensor.stride(), stored.tensor.storage_offset()
            )
