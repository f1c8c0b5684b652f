"""Follows a model's forward pass, operation by operation, on example inputs.

Views need no rule: they share their storage's codes. Operations that only move values are run on the codes as well.
Additions, means and linear maps are recorded; whatever else reads a value is a reader that is not understood.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, jit, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from un.folding.arithmetic import ARITHMETIC, record_norm
from un.folding.graph import Graph, LinearUse
from un.folding.inputs import Inputs
from un.folding.moves import MOVES
from un.folding.padding import PaddingTracer
from un.folding.recorder import ModuleCall, Recorder
from un.folding.sites import FoldSite

aten = torch.ops.aten

MAX_DECISIONS = 16  # truth values of which both answers are followed; ours

RULES = {**ARITHMETIC, **MOVES}
NEW_TENSORS = {aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like}
NEW_TENSORS |= {aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty_strided}
VIEWS_IN_PLACE = {aten.as_strided_, aten.transpose_, aten.t_, aten.squeeze_, aten.unsqueeze_, aten.detach_}
QUERIES = {aten.size, aten.stride, aten.storage_offset, aten.sym_size, aten.sym_stride, aten.sym_storage_offset}
SHAPE_READERS = NEW_TENSORS | VIEWS_IN_PLACE | QUERIES | {aten.lift_fresh}
DECISIONS = {aten.is_nonzero, aten.item, aten._local_scalar_dense}
CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # never run themselves; which of their modules do is up to the model's code


def trace(model: nn.Module, sites: Sequence[FoldSite], inputs: Inputs) -> Graph:
    """Runs a disposable copy of a model and records what its channels meet.

    Besides the example, the model is run on inputs of other sizes, and once more for each of the first truth values
    that it asks for, with the opposite answer; a run that ends in an error counts for nothing.

    Args:
        model: the copy, of inference tensors, in evaluation mode; its modules' `forward` are replaced.
        sites: its norms.
        inputs: the example.
    """
    tracer = Tracer(Recorder(model))
    graph = tracer.recorder.graph
    _watch_modules(tracer, model, sites)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it runs a whole attention, or a whole layer, as one operation
    try:
        _run(tracer, model, inputs)
        num_decisions = tracer.num_decisions
        for variant in inputs.list_variants():
            _try(tracer, model, variant)
        for tracer.flipped in range(min(num_decisions, MAX_DECISIONS)):
            _try(tracer, model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    if num_decisions > MAX_DECISIONS:
        graph.notes.append(f"the code branches on values {num_decisions} times: only {MAX_DECISIONS} are followed")
    _note_unreached(tracer.recorder, model)
    return graph


def _run(tracer: Tracer, model: nn.Module, inputs: Inputs) -> None:
    tracer.num_decisions = tracer.depth = 0
    with PaddingTracer(tracer.recorder), tracer:
        outputs = inputs.run(model)
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    tracer.recorder.note_read(tensors, "the model's output")


def _try(tracer: Tracer, model: nn.Module, inputs: Inputs) -> None:
    before = tracer.recorder.graph.copy_records()
    try:
        _run(tracer, model, inputs)
    except Exception:  # a model can raise anything on an input that it refuses
        tracer.recorder.graph.restore_records(before)


class Tracer(TorchDispatchMode):
    """Records every operation while active; the model's parameters must be inference tensors.

    Inference tensors reach a dispatch mode before torch takes linear layers apart.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.flipped = -1  # number of the decision to be answered the other way round
        self.num_decisions = 0  # truth values that the model has asked for
        self.silent = False  # inside a norm, whose operations are not recorded
        self.depth = 0  # of operations that are taken apart

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs) if self.silent else self._trace(func, args, kwargs)
        if func.overloadpacket not in SHAPE_READERS:
            self.recorder.note_precision((args, kwargs), out)
        decides = func.overloadpacket in DECISIONS and not self.silent and not self.depth
        return self._decide(out) if decides else out

    def _trace(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs one operation by its rule, or taken apart, or as one that is not understood."""
        if func.overloadpacket in SHAPE_READERS:
            return func(*args, **kwargs)
        rule = RULES.get(func.overloadpacket)
        changes_nothing = func._schema.is_mutable and isinstance(args[0], Tensor) and not args[0].numel()
        out = NotImplemented if rule is None or changes_nothing else rule(self.recorder, func, args, kwargs)
        if out is NotImplemented:
            self.depth += 1
            with self:
                out = func.decompose(*args, **kwargs)
            self.depth -= 1
        return self._trace_other(func, args, kwargs) if out is NotImplemented else out

    def _trace_other(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        storages = {tensor.untyped_storage() for tensor in tensors}
        out = func(*args, **kwargs)
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        writes = func._schema.is_mutable
        if not writes and outs and all(tensor.untyped_storage() in storages for tensor in outs):
            return out  # a view
        reader = self.recorder.describe(func)
        self.recorder.note_read(tensors, reader)
        for tensor in outs if writes else ():
            if tensor.numel():
                self.recorder.codes.forget(tensor)
            else:  # what it changes on another input could be any value in the memory behind it
                self.recorder.note_codes(self.recorder.codes.read_all(tensor), reader)
        return out

    def _decide(self, answer: Any) -> Any:
        """Returns what the model asks for; the opposite where the other way through its code is to be followed."""
        if not isinstance(answer, bool):
            return answer
        self.num_decisions += 1
        return not answer if self.num_decisions - 1 == self.flipped else answer


def _watch_modules(tracer: Tracer, model: nn.Module, sites: Sequence[FoldSite]) -> None:
    """Replaces the forward of every module by one that is watched."""
    numbers = {site.norm: index for index, site in enumerate(sites) if not site.obstacle}
    for name, module in list(model.named_modules()):
        if module in numbers:
            index = numbers[module]
            module.forward = _watch_norm(tracer, name, index, sites[index])
        elif not isinstance(module, jit.ScriptModule):
            module.forward = _watch_module(tracer, name, module)


def _watch_module(tracer: Tracer, name: str, module: nn.Module) -> Callable[..., Any]:
    recorder, graph, forward = tracer.recorder, tracer.recorder.graph, module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        call = ModuleCall(name, module)
        recorder.calls.append(call)
        try:
            out = forward(*args, **kwargs)
        finally:
            recorder.calls.pop()
        graph.reached.add(name)
        graph.padding_counts.setdefault(name, set()).add(call.num_paddings)
        with _disable_current_modes():
            recorder.note_boundary(name, (args, kwargs), out)
        return out

    return watched


def _watch_norm(tracer: Tracer, name: str, index: int, site: FoldSite) -> Callable[..., Tensor]:
    recorder, forward = tracer.recorder, site.norm.forward

    def watched(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.shape[site.channel_axis] != len(site.scale):  # a variant of the example that only broadcasts
            raise ValueError(f"{name} is over {len(site.scale)} channels, got {x.shape[site.channel_axis]}")
        tracer.silent = True
        try:
            out = forward(x, *args, **kwargs)
        finally:
            tracer.silent = False
        with _disable_current_modes():
            recorder.note_raw_read(x, "input of a norm")
            record_norm(recorder, index, x, out, site.channel_axis, bool(args or kwargs))
        recorder.graph.reached.add(name)
        return out

    return watched


def _note_unreached(recorder: Recorder, model: nn.Module) -> None:
    """Treats a module that no run reached as a reader of what its neighbours in a list, or its owner, have met.

    Which expert, adapter or head runs, and whether a layer does, may depend on the input.
    """
    graph = recorder.graph
    used = {source.stored.name for source in graph.sources if isinstance(source, LinearUse)} | set(graph.raw_reads)
    unreached: list[str] = []
    for name, module in model.named_modules():
        known = name in graph.reached or isinstance(module, CONTAINERS) or next(module.parameters(), None) is None
        known = known or any(parameter.startswith(f"{name}.") for parameter in used)
        if not known and not any(name.startswith(f"{other}.") for other in unreached):
            unreached.append(name)
            for place in _list_places(graph, model, name):
                for codes in graph.boundaries.get(place, ()):
                    recorder.note_codes(codes, f"{name}, which the example does not reach,")
    if unreached:
        graph.notes.append(f"not reached on the example inputs, and left as they were: {', '.join(unreached)}")


def _list_places(graph: Graph, model: nn.Module, name: str) -> list[str]:
    """Modules whose inputs and outputs an unreached one could read: those like it in its list, or else its owner."""
    path = name.rpartition(".")[0]
    parent = model.get_submodule(path)
    if not isinstance(parent, CONTAINERS):
        return [path]
    module = model.get_submodule(name)
    alike = [f"{path}.{key}" for key, other in parent.named_children() if _is_twin(module, other)]
    return [place for place in alike if place in graph.boundaries] or _list_places(graph, model, path)


def _is_twin(module: nn.Module, other: nn.Module) -> bool:
    shapes = [[parameter.shape for parameter in candidate.parameters()] for candidate in (module, other)]
    return module is not other and type(module) is type(other) and shapes[0] == shapes[1]
