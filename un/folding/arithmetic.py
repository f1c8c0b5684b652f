"""The operations on channels that have rules: linear maps, sums, means and what attention does to keys.

A rule runs its operation and records it, or returns NotImplemented where the operation is not of the kind it knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from un.folding.recorder import Recorder

aten = torch.ops.aten

Rule = Callable[[Recorder, Any, Any, Any], Any]


def trace_linear(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records x W^T + b."""
    x, weight, *rest = args
    bias = rest[0] if rest else kwargs.get("bias")
    return _apply_linear(recorder, func, args, kwargs, x, weight, bias)


def trace_matmul(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records x W of a matrix W."""
    x, matrix = args
    return (
        _apply_linear(recorder, func, args, kwargs, x, matrix.t(), None)
        if matrix.dim() == 2 and x.dim() > 1
        else NotImplemented
    )


def trace_addmm(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records b + x W."""
    bias, x, matrix = args
    return NotImplemented if kwargs else _apply_linear(recorder, func, args, kwargs, x, matrix.t(), bias)


def _apply_linear(
    recorder: Recorder, func: Any, args: Any, kwargs: Any, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Any:
    if recorder.catalog.find(weight) is None or weight.dim() != 2:
        return NotImplemented
    if bias is not None and bias.shape != weight.shape[:1]:
        return NotImplemented
    out = func(*args, **kwargs)
    recorder.note_precision(args, out)
    recorder.record_raw_read(x, f"input of a linear map in {recorder.module}")
    recorder.record_linear(x, weight, bias, out, axis=-1, groups=1)
    return out


def trace_convolution(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records a convolution, which is a linear map over axis 1 for every offset of its kernel."""
    x, weight, bias, _, padding, _, transposed, _, groups = args
    if recorder.catalog.find(weight) is None or transposed or x.dim() != weight.dim():
        return NotImplemented
    out = func(*args, **kwargs)
    recorder.note_precision(args, out)
    if any(padding):
        recorder.record_padding(x, f"zero padding of the convolution in {recorder.module}")
    recorder.record_raw_read(x, f"input of a convolution in {recorder.module}")
    recorder.record_linear(x, weight, bias, out, axis=1, groups=groups)
    return out


def trace_add(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records a sum of two tensors."""
    left, right = args
    if not isinstance(right, Tensor) or kwargs.get("alpha", 1) != 1:
        return NotImplemented
    if not (left.is_floating_point() and right.is_floating_point()):
        return NotImplemented
    if func._schema.is_mutable and not left.numel():
        return NotImplemented
    known = any(recorder.shadow.read(tensor) is not None for tensor in (left, right))
    out = func(*args, **kwargs)
    recorder.note_precision(args, out)
    if known:
        recorder.record_sum(left, right, out)
    else:
        recorder.record_read((left, right), recorder.describe(func))
    return out


def trace_mean(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records a mean or a maximum over axes."""
    x = args[0]
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    if not dims or recorder.shadow.read(x) is None or not x.numel():
        return NotImplemented
    out = func(*args, **kwargs)
    recorder.note_precision(args, out)
    ordered = func.overloadpacket is aten.amax
    recorder.record_mean(x, dims, out, ordered, recorder.describe(func))
    return out


def trace_attention(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records softmax attention, to which one constant added to all keys of a head makes no difference.

    It adds the same number to all scores of a query, and the softmax runs over exactly these.
    """
    query, key, value, *rest = args
    mask = rest[0] if rest else kwargs.get("attn_mask")
    if recorder.shadow.read(key) is None or not key.numel():
        return NotImplemented
    out = func(*args, **kwargs)
    recorder.note_precision(args, out)
    others = [tensor for tensor in (query, value, mask) if isinstance(tensor, Tensor)]
    recorder.record_read(others, recorder.describe(func))
    recorder.record_keys(key, recorder.describe(func))
    return out


ARITHMETIC: dict[Any, Rule] = {
    aten.linear: trace_linear,
    aten.matmul: trace_matmul,
    aten.mm: trace_matmul,
    aten.addmm: trace_addmm,
    aten.convolution: trace_convolution,
    aten.add: trace_add,
    aten.add_: trace_add,
    aten.mean: trace_mean,
    aten.amax: trace_mean,
    aten.scaled_dot_product_attention: trace_attention,
}
