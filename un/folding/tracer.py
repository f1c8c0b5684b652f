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
from torch.utils._pytree import tree_leaves, tree_map

from un.folding.graph import Graph, identify_storage
from un.folding.recorder import Recorder
from un.folding.sites import Site

aten = torch.ops.aten

MOVES = {
    *(aten.clone, aten.cat, aten.stack, aten.index, aten.index_select, aten.gather, aten.roll, aten.flip, aten.repeat),
    *(aten.constant_pad_nd, aten.pixel_shuffle, aten.pixel_unshuffle, aten.im2col, aten.masked_fill, aten.where),
    *(aten._to_copy, aten.copy_, aten.channel_shuffle, aten.masked_fill_, aten.slice_scatter, aten.select_scatter),
}
FILLS = {aten.masked_fill: 2, aten.masked_fill_: 2, aten.constant_pad_nd: 2}  # argument that brings a foreign value
SHAPE_READERS = {
    *(aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.new_empty),
    *(aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty_strided, aten.detach_, aten.lift_fresh),
    *(aten.as_strided_, aten.transpose_, aten.t_, aten.squeeze_, aten.unsqueeze_),
    *(aten.size, aten.stride, aten.storage_offset, aten.sym_size, aten.sym_stride, aten.sym_storage_offset),
}
OVERWRITES = {aten.copy_, aten.zero_, aten.fill_}


class Tracer(TorchDispatchMode):
    """Records every operation while active; the model's parameters must be inference tensors.

    Inference tensors reach a dispatch mode before torch takes linear layers apart.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.silent = 0  # depth of norms being computed
        self._rules: dict[Any, Callable[..., Any]] = {
            aten.linear: self._trace_linear,
            aten.matmul: self._trace_matmul,
            aten.mm: self._trace_matmul,
            aten.addmm: self._trace_addmm,
            aten.convolution: self._trace_convolution,
            aten.add: self._trace_add,
            aten.add_: self._trace_add,
            aten.mean: self._trace_mean,
            aten.amax: self._trace_mean,
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and records it."""
        kwargs = kwargs or {}
        if self.silent:
            return func(*args, **kwargs)
        rule = self._rules.get(func.overloadpacket)
        out = NotImplemented if rule is None else rule(func, args, kwargs)
        if out is NotImplemented and func.overloadpacket not in SHAPE_READERS:
            with self:
                out = func.decompose(*args, **kwargs)
        return self._trace_other(func, args, kwargs) if out is NotImplemented else out

    def _trace_linear(self, func: Any, args: Any, kwargs: Any) -> Any:
        x, weight, *rest = args
        bias = rest[0] if rest else kwargs.get("bias")
        return self._apply_linear(func, args, kwargs, x, weight, bias)

    def _trace_matmul(self, func: Any, args: Any, kwargs: Any) -> Any:
        x, matrix = args
        return self._apply_linear(func, args, kwargs, x, matrix.t(), None) if matrix.dim() == 2 else NotImplemented

    def _trace_addmm(self, func: Any, args: Any, kwargs: Any) -> Any:
        bias, x, matrix = args
        return NotImplemented if kwargs else self._apply_linear(func, args, kwargs, x, matrix.t(), bias)

    def _apply_linear(self, func: Any, args: Any, kwargs: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        if self.recorder.catalog.find(weight) is None or weight.dim() != 2:
            return NotImplemented
        if bias is not None and bias.shape != weight.shape[:1]:
            return NotImplemented
        out = func(*args, **kwargs)
        self._note_precision(args, out)
        self.recorder.record_raw_read(x, f"input of a linear map in {self.recorder.module}")
        self.recorder.record_linear(x, weight, bias, out, axis=-1, groups=1)
        return out

    def _trace_convolution(self, func: Any, args: Any, kwargs: Any) -> Any:
        x, weight, bias, _, padding, _, transposed, _, groups = args
        if self.recorder.catalog.find(weight) is None or transposed or x.dim() != weight.dim():
            return NotImplemented
        out = func(*args, **kwargs)
        self._note_precision(args, out)
        if any(padding):
            self.recorder.record_padding(x, f"zero padding of the convolution in {self.recorder.module}")
        self.recorder.record_raw_read(x, f"input of a convolution in {self.recorder.module}")
        self.recorder.record_linear(x, weight, bias, out, axis=1, groups=groups)
        return out

    def _trace_add(self, func: Any, args: Any, kwargs: Any) -> Any:
        left, right = args
        if not isinstance(right, Tensor) or kwargs.get("alpha", 1) != 1:
            return NotImplemented
        if not (left.is_floating_point() and right.is_floating_point()):
            return NotImplemented
        codes = [self.recorder.shadow.read(tensor) for tensor in (left, right)]
        out = func(*args, **kwargs)
        self._note_precision(args, out)
        if any(of_one is not None for of_one in codes):
            self.recorder.record_sum(left, right, out)
        else:
            self.recorder.record_read((left, right), self._describe(func))
        return out

    def _trace_mean(self, func: Any, args: Any, kwargs: Any) -> Any:
        x = args[0]
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        if not dims or self.recorder.shadow.read(x) is None:
            return NotImplemented
        out = func(*args, **kwargs)
        self._note_precision(args, out)
        ordered = func.overloadpacket is aten.amax
        self.recorder.record_mean(x, dims, out, ordered, self._describe(func))
        return out

    def _trace_other(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func.overloadpacket in SHAPE_READERS:
            return func(*args, **kwargs)
        moved = self._move_codes(func, args, kwargs, tensors) if func.overloadpacket in MOVES else None
        read = tensors[1:] if func.overloadpacket in OVERWRITES else tensors
        storages = {identify_storage(tensor) for tensor in tensors}
        out = func(*args, **kwargs)
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        writes = func._schema.is_mutable
        if not writes and outs and all(identify_storage(tensor) in storages for tensor in outs):
            return out  # a view
        self._note_precision(tensors, out)
        if func.overloadpacket is aten.cat and self.recorder.record_concatenated_bias(args[0], out):
            return out
        if moved is not None:
            for tensor in read:
                self.recorder.record_raw_read(tensor, self._describe(func))
            self.recorder.shadow.write(outs[0], moved)
            return out
        self.recorder.record_read(read, self._describe(func))
        if writes:
            for tensor in outs:
                self._forget(tensor)
        return out

    def _move_codes(self, func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Tensor | None:
        """The codes of the result of an operation that only moves values; None where no operand has any."""
        if all(self.recorder.shadow.read(tensor) is None for tensor in tensors):
            return None

        def exchange(leaf: Any) -> Any:
            if func.overloadpacket is aten.where and isinstance(leaf, float | int):
                return 0.0
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                return leaf
            codes = self.recorder.shadow.read(leaf)
            return torch.zeros_like(leaf, dtype=torch.float64) if codes is None else codes.clone()

        if func.overloadpacket is aten._to_copy:
            floats = kwargs.get("dtype") is None or kwargs["dtype"].is_floating_point
            return self.recorder.shadow.read(args[0]) if floats else None
        new_args = list(tree_map(exchange, args))
        position = FILLS.get(func.overloadpacket)
        if position is not None and len(new_args) > position:
            new_args[position] = torch.zeros_like(new_args[position]) if isinstance(args[position], Tensor) else 0.0
        return func(*new_args, **tree_map(exchange, kwargs))

    def _forget(self, tensor: Tensor) -> None:
        if self.recorder.shadow.read(tensor) is not None:
            self.recorder.shadow.write(tensor, torch.zeros((), dtype=torch.float64))

    def _note_precision(self, inputs: Any, out: Any) -> None:
        """Remembers whether floating-point values of float64 were turned into narrower ones."""
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if any(t.is_floating_point() and t.dtype != torch.float64 for t in outs):
            known = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
            self.recorder.graph.rounds |= any(t.dtype == torch.float64 for t in known)

    def _describe(self, func: Any) -> str:
        return f"{func.overloadpacket.__name__} in {self.recorder.module}"


def trace(model: nn.Module, sites: Sequence[Site], call: Callable[[nn.Module], Any]) -> tuple[Graph, Any]:
    """Runs a disposable copy of a model and records what its channels meet.

    Args:
        model: the copy, of inference tensors, in evaluation mode; its modules' `forward` are replaced.
        sites: its norms.
        call: runs the model and returns the outputs that folding must preserve.

    Returns:
        The graph and the outputs.
    """
    recorder = Recorder(model)
    tracer = Tracer(recorder)
    numbers = {site.norm: index for index, site in enumerate(sites)}
    for name, module in list(model.named_modules()):
        index = numbers.get(module)
        if index is not None:
            _watch_norm(tracer, module, index, sites[index].channel_axis)
        elif not isinstance(module, torch.jit.ScriptModule):
            _watch_module(recorder, module, name)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it runs a whole attention, or a whole layer, as one operation
    try:
        with tracer:
            outputs = call(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    recorder.record_read(tensors, "the model's output")
    return recorder.graph, outputs


def _watch_module(recorder: Recorder, module: nn.Module, name: str) -> None:
    forward = module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        recorder.modules.append((name, module))
        try:
            return forward(*args, **kwargs)
        finally:
            recorder.modules.pop()

    module.forward = watched


def _watch_norm(tracer: Tracer, norm: nn.Module, site: int, axis: int) -> None:
    forward = norm.forward

    def watched(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tracer.silent += 1
        try:
            out = forward(x, *args, **kwargs)
            tracer.recorder.record_raw_read(x, "input of a norm")
            tracer.recorder.record_norm(site, x, out, axis, bool(args or kwargs))
        finally:
            tracer.silent -= 1
        return out

    norm.forward = watched
