"""New weights and biases for given frames, and the places where they contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from un.folding.graph import Catalog, Graph, LinearUse
from un.folding.solver import NOBODY, Frames, is_same

HOMELESS = "part of its shift has no stored bias to go to, and the outputs depend on it"


@dataclass
class Rewrite:
    """What changes in the model's stored tensors, in float64.

    Attributes:
        values: name -> a parameter or buffer.
        new_biases: dotted name of a module without bias -> its bias.
        touched: site -> names of the weights and biases that took its map.
        homeless: sites that lose a part of their shift which has no stored bias to go to. Harmless only where the
            outputs do not depend on it, as on what a softmax attention adds to its keys.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    new_biases: dict[str, Tensor] = field(default_factory=dict)
    touched: dict[int, list[str]] = field(default_factory=dict)
    homeless: set[int] = field(default_factory=set)


def rewrite_weights(graph: Graph, catalog: Catalog, frames: Frames) -> Rewrite:
    """Applies frames to every weight and bias that a linear map uses; adds to `frames.blamed` what contradicts."""
    rewriter = _Rewriter(catalog, frames)
    uses = [source for source in graph.sources if isinstance(source, LinearUse)]
    for use in uses:
        rewriter.rewrite(use)
    rewriter.finish(graph.raw_reads)
    return rewriter.result


class _Rewriter:
    def __init__(self, catalog: Catalog, frames: Frames) -> None:
        self.catalog = catalog
        self.frames = frames
        self.result = Rewrite()
        self._memories: dict[str, Tensor] = {}  # name -> new elements, nan where nothing has been asked for
        self._codes: dict[str, list[Tensor]] = {}  # name -> codes whose frames changed it

    def rewrite(self, use: LinearUse) -> None:
        """Demands what one linear map needs of its weight and bias."""
        frames, outputs = self.frames, use.outputs
        stored = self.catalog.by_name[use.weight.name]
        weight = use.weight.view(stored.tensor)
        inputs = torch.zeros(weight.shape[1] * use.groups, dtype=torch.int64) if use.inputs is None else use.inputs
        codes = torch.cat((inputs, outputs))
        scale, shift = (_spread(v[inputs].to(weight), weight, use.groups) for v in (frames.scale, frames.shift))
        row_scale, row_shift = frames.row_scale[outputs].to(weight), frames.row_shift[outputs].to(weight)
        rows = row_scale.view(-1, *[1] * (weight.dim() - 1))
        self._demand(use.weight.name, use.weight.view, weight * scale * rows, codes)
        added = row_scale * (weight * shift).flatten(1).sum(1) + row_shift
        names = [use.weight.name, *self._rewrite_bias(use, row_scale, added, codes)]
        changed = torch.cat(
            (inputs[~frames.is_plain(inputs)], outputs[(row_scale != 1).cpu() | (row_shift != 0).cpu()])
        )
        for site in torch.unique(frames.owner[changed]).tolist():
            if site != NOBODY:
                listed = self.result.touched.setdefault(site, [])
                listed.extend(name for name in names if name not in listed)

    def _rewrite_bias(self, use: LinearUse, scale: Tensor, added: Tensor, codes: Tensor) -> list[str]:
        """Demands scale * bias + added of a linear map's bias; returns names of the biases."""
        if use.bias is None:
            return self._grow_bias(use, added, codes)
        names = []
        numbers = use.bias.to(scale.device)
        for name, stored in self.catalog.by_name.items():
            mine = (numbers >= stored.base) & (numbers < stored.base + stored.tensor.numel())
            if not bool(mine.any()):
                continue
            positions = numbers[mine] - stored.base
            old = stored.tensor.as_strided((stored.tensor.numel(),), (1,))[positions]
            new = scale[mine] * old + added[mine]
            if not stored.persistent:
                self._lose(codes, new != old)
                continue
            self._demand(name, positions, new, codes)
            names.append(name)
        self._lose(codes, (numbers < 0) & ((added != 0) | (scale != 1)))
        return names

    def _grow_bias(self, use: LinearUse, added: Tensor, codes: Tensor) -> list[str]:
        if not bool((added != 0).any()):
            return []
        if not use.takes_bias:
            self.frames.blame(codes, f"the linear map in {use.module} takes no bias")
            return []
        known = self.result.new_biases.setdefault(use.module, added)
        if not bool(is_same(known, added).all()):
            self.frames.blame(codes, f"{use.module} is called on several inputs and would need several biases")
        return [f"{use.module}.bias"]

    def _lose(self, codes: Tensor, lost: Tensor) -> None:
        if bool(lost.any()):
            self.result.homeless |= set(torch.unique(self.frames.owner[codes]).tolist()) - {NOBODY}

    def _demand(self, name: str, where: object, new: Tensor, codes: Tensor) -> None:
        """Asks for new elements of a stored tensor; `where` makes a view of its memory or lists positions in it."""
        stored = self.catalog.by_name[name]
        if name not in self._memories:
            size = stored.tensor.untyped_storage().nbytes() // stored.tensor.element_size()
            self._memories[name] = torch.full((size,), torch.nan, dtype=torch.float64, device=stored.tensor.device)
        memory = self._memories[name]
        known = where(memory) if callable(where) else memory[where]  # type: ignore[index]
        fresh = known.isnan()
        if not bool(fresh.all()) and not bool((fresh | is_same(known, new)).all()):
            affected = torch.cat([codes, *self._codes.get(name, [])])
            self.frames.blame(affected, f"{name} serves several inputs and would need several values")
        if callable(where):
            known.copy_(new)
        else:
            memory[where] = new  # type: ignore[index]
        self._codes.setdefault(name, []).append(codes)

    def finish(self, raw_reads: Mapping[str, str]) -> None:
        """Drops what does not change, and blames where something else reads what does."""
        for name, memory in self._memories.items():
            old = self.catalog.by_name[name].tensor.as_strided(memory.shape, (1,))
            asked = ~memory.isnan()
            if bool((memory[asked] == old[asked]).all()):
                continue
            if name in raw_reads:
                self.frames.blame(torch.cat(self._codes[name]), f"{name} is also read by {raw_reads[name]}")
            if not self.catalog.by_name[name].persistent:
                self.frames.blame(torch.cat(self._codes[name]), f"{name} is not saved in a state dict")
            stored = self.catalog.by_name[name].tensor
            self.result.values[name] = torch.where(asked, memory, old).as_strided(stored.size(), stored.stride())


def _spread(values: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Values of a linear map's input channels laid beside its weight, (O or 1, K / groups, 1, ...)."""
    values = values.view(groups, -1)
    if groups > 1:
        values = values.repeat_interleave(weight.shape[0] // groups, dim=0)
    return values.view(*values.shape, *[1] * (weight.dim() - 2))
