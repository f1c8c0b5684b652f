"""Follows a model's forward pass, operation by operation, on example inputs.

Views need no rule: they share their storage's codes. Operations that only move values are run on the codes as well.
Additions, means and linear maps are recorded; whatever else reads a value is a reader that is not understood.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from un.folding.arithmetic import ARITHMETIC
from un.folding.graph import Graph, identify_storage
from un.folding.inputs import Inputs
from un.folding.moves import MOVES
from un.folding.padding import PaddingTracer
from un.folding.recorder import Recorder
from un.folding.sites import FoldSite
from un.folding.watching import note_unreached, watch_modules

aten = torch.ops.aten

MAX_DECISIONS = 16  # truth values of which both answers are followed; ours

RULES = {**ARITHMETIC, **MOVES}
SHAPE_READERS = {
    *(aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.new_empty),
    *(aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty_strided, aten.detach_, aten.lift_fresh),
    *(aten.as_strided_, aten.transpose_, aten.t_, aten.squeeze_, aten.unsqueeze_),
    *(aten.size, aten.stride, aten.storage_offset, aten.sym_size, aten.sym_stride, aten.sym_storage_offset),
}
DECISIONS = {aten.is_nonzero, aten.item, aten._local_scalar_dense}


class Tracer(TorchDispatchMode):
    """Records every operation while active; the model's parameters must be inference tensors.

    Inference tensors reach a dispatch mode before torch takes linear layers apart.

    Args:
        recorder: of the trace.
        flipped: the number of the decision to be taken otherwise than the values say; none by default.
    """

    def __init__(self, recorder: Recorder, flipped: int | None = None) -> None:
        super().__init__()
        self.recorder, self.flipped = recorder, flipped
        self.silent = 0  # depth of what runs unseen
        self.depth = 0  # of operations that are taken apart
        self.num_decisions = 0  # truth values that the model asked for

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and records it."""
        kwargs = kwargs or {}
        if self.silent:
            out = func(*args, **kwargs)
            self.recorder.note_precision(args, out)
            return out
        rule = RULES.get(func.overloadpacket)
        out = NotImplemented if rule is None else rule(self.recorder, func, args, kwargs)
        if out is NotImplemented and func.overloadpacket not in SHAPE_READERS:
            self.depth += 1
            with self:
                out = func.decompose(*args, **kwargs)
            self.depth -= 1
        if out is NotImplemented:
            out = self._trace_other(func, args, kwargs)
        return self._decide(out) if func.overloadpacket in DECISIONS and not self.depth else out

    def run_unseen(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a function whose operations are not recorded."""
        self.silent += 1
        try:
            return func(*args, **kwargs)
        finally:
            self.silent -= 1

    def _trace_other(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func.overloadpacket in SHAPE_READERS:
            return func(*args, **kwargs)
        storages = {identify_storage(tensor) for tensor in tensors}
        out = func(*args, **kwargs)
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        writes = func._schema.is_mutable
        if not writes and outs and all(identify_storage(tensor) in storages for tensor in outs):
            return out  # a view
        self.recorder.note_precision(tensors, out)
        self.recorder.record_read(tensors, self.recorder.describe(func))
        for tensor in outs if writes else ():
            if tensor.numel():
                self.recorder.forget(tensor)
            else:
                self.recorder.record_memory_read(tensor, self.recorder.describe(func))
        return out

    def _decide(self, answer: Any) -> Any:
        """The value that the model asks for; the opposite where the other way through its code is to be followed."""
        if not isinstance(answer, bool):
            return answer
        self.num_decisions += 1
        return not answer if self.num_decisions - 1 == self.flipped else answer


def trace(model: nn.Module, sites: Sequence[FoldSite], inputs: Inputs, dtype: torch.dtype | None) -> Graph:
    """Runs a disposable copy of a model and records what its channels meet.

    Beside the example the model is run on inputs of other sizes, and as if each of the first truth values that it asks
    for were the other; a run that ends in an error counts for nothing.

    Args:
        model: the copy, of inference tensors, in evaluation mode; its modules' `forward` are replaced.
        sites: its norms.
        inputs: the example.
        dtype: to which floating-point inputs are cast.
    """
    recorder = Recorder(model)
    tracer = Tracer(recorder)
    watch_modules(recorder, tracer.run_unseen, model, sites)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it runs a whole attention, or a whole layer, as one operation
    try:
        _run(tracer, model, inputs, dtype)
        recorder.graph.num_example_sources = len(recorder.graph.sources)
        num_decisions = tracer.num_decisions
        for variant in inputs.list_variants():
            _try(tracer, model, variant, dtype)
        for tracer.flipped in range(min(num_decisions, MAX_DECISIONS)):
            _try(tracer, model, inputs, dtype)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    if num_decisions > MAX_DECISIONS:
        recorder.graph.notes.append(f"the code branches on values {num_decisions} times: only {MAX_DECISIONS} followed")
    note_unreached(recorder, model)
    return recorder.graph


def _run(tracer: Tracer, model: nn.Module, inputs: Inputs, dtype: torch.dtype | None) -> None:
    tracer.num_decisions = tracer.depth = 0
    with PaddingTracer(tracer.recorder, tracer.run_unseen), tracer:
        outputs = inputs.run(model, dtype)
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    tracer.recorder.record_read(tensors, "the model's output")


def _try(tracer: Tracer, model: nn.Module, inputs: Inputs, dtype: torch.dtype | None) -> None:
    before = tracer.recorder.graph.copy_records()
    try:
        _run(tracer, model, inputs, dtype)
    except Exception:  # whatever a model raises on an input that it refuses
        tracer.recorder.graph.restore_records(before)
