"""The rules of operations that compute with channels: linear maps, sums, means, attention, and the norms themselves.

A rule runs its operation and records it, or returns NotImplemented where the operation is not of the kind it knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from un.folding.codes import lay_along
from un.folding.graph import LinearUse, Need, NormCall, Sum
from un.folding.recorder import NO_ROW, Recorder

aten = torch.ops.aten

Rule = Callable[[Recorder, Any, Any, Any], Any]


def trace_linear(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records x W^T + b."""
    x, weight, *rest = args
    return _apply_linear(recorder, func, args, kwargs, x, weight, rest[0] if rest else kwargs.get("bias"))


def trace_matmul(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records x W or b + x W."""
    *bias, x, matrix = args
    if matrix.dim() != 2 or x.dim() < 2 or kwargs:
        return NotImplemented
    return _apply_linear(recorder, func, args, kwargs, x, matrix.t(), bias[0] if bias else None)


def _apply_linear(
    recorder: Recorder, func: Any, args: Any, kwargs: Any, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Any:
    if recorder.catalog.find(weight) is None or weight.dim() != 2:
        return NotImplemented
    if bias is not None and bias.shape != weight.shape[:1]:
        return NotImplemented
    out = func(*args, **kwargs)
    _record_linear(recorder, x, weight, bias, out, axis=-1, groups=1)
    return out


def trace_convolution(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records a convolution, which is a linear map over axis 1 for every offset of its kernel."""
    x, weight, bias, _, padding, _, transposed, _, groups = args
    if recorder.catalog.find(weight) is None or transposed or x.dim() != weight.dim():
        return NotImplemented
    out = func(*args, **kwargs)
    if any(padding):
        reader = f"zero padding of the convolution in {recorder.module}"
        recorder.note_codes(recorder.codes.read(x), reader, Need.NO_SHIFT)
    _record_linear(recorder, x, weight, bias, out, axis=1, groups=groups)
    return out


def _record_linear(
    recorder: Recorder, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, axis: int, groups: int
) -> None:
    """Notes one linear map over an axis of x with a stored weight, and codes its output along the same axis."""
    recorder.note_raw_read(x, f"input of a linear map in {recorder.module}")
    stored = recorder.catalog.find(weight)
    assert stored is not None  # callers ask before
    size = weight.shape[0]
    numbers = None
    if bias is not None:
        located = recorder.locate_bias(bias)
        numbers = torch.full((size,), -1) if located is None else located.cpu()
    biases = () if numbers is None else recorder.catalog.list_stored(numbers)
    module = recorder.calls[-1].module
    takes_bias = (
        isinstance(module, nn.Linear | _ConvNd)
        and module.bias is None
        and recorder.catalog.find(module.weight) is stored
        and bias is None
    )
    inputs = _read_row(recorder, x, axis)
    base = recorder.graph.allocate(size)
    use = LinearUse(base, size, stored, weight, inputs, numbers, biases, recorder.module, takes_bias, groups)
    recorder.graph.sources.append(use)
    recorder.codes.write(out, lay_along(torch.arange(base, base + size, device=out.device), out, axis))


def _read_row(recorder: Recorder, x: Tensor, axis: int) -> Tensor | None:
    """Returns the code of each channel of a linear map's input; notes a meeting where positions differ."""
    reader = f"linear map in {recorder.module}"
    codes = recorder.codes.read(x) if x.numel() else recorder.codes.read_beside(x)
    if codes is None:
        if not x.numel():  # it could read anything
            recorder.note_codes(torch.arange(recorder.graph.size), f"{reader}, which {NO_ROW}")
        return None
    rows = codes.movedim(axis, -1).reshape(-1, codes.shape[axis])
    recorder.note_meeting(rows[:1], rows, reader)
    return rows[0].long().cpu()


def record_norm(recorder: Recorder, site: int, x: Tensor, out: Tensor, axis: int, more_arguments: bool) -> None:
    """Notes one call of a norm and codes its output: one code per channel and code of the input."""
    size = x.shape[axis]
    channels = lay_along(torch.arange(size, device=x.device), x, axis)
    pairs = recorder.codes.read_filled(x).long() * size + channels
    kinds, positions = torch.unique(pairs, return_inverse=True) if x.numel() else (torch.arange(size), pairs)
    inputs, of_channel = (kinds // size).cpu(), (kinds % size).cpu()
    base = recorder.graph.allocate(len(kinds))
    call = NormCall(base, len(kinds), site, inputs, of_channel, x.dim(), more_arguments)
    recorder.graph.sources.append(call)
    if x.numel():
        recorder.codes.write(out, positions + base)
    else:
        recorder.note_codes(call.outputs, f"whatever reads {recorder.module}, which {NO_ROW}")


def trace_add(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records a sum of two tensors, which may broadcast."""
    left, right = args
    if not isinstance(right, Tensor) or kwargs.get("alpha", 1) != 1:
        return NotImplemented
    if not (left.is_floating_point() and right.is_floating_point()) or not recorder.has_codes(args):
        return NotImplemented
    for tensor in args:
        recorder.note_raw_read(tensor, f"addition in {recorder.module}")
    out, size = func(*args, **kwargs), recorder.graph.size
    pairs = recorder.codes.read_filled(left).long() * size + recorder.codes.read_filled(right).long()
    kinds, positions = torch.unique(pairs.expand(out.shape), return_inverse=True)
    lefts, rights = (kinds // size).cpu(), (kinds % size).cpu()
    known = (lefts != 0) | (rights != 0)
    count = int(known.sum())
    base = recorder.graph.allocate(count)
    new_codes = torch.where(known, base + known.cumsum(0) - 1, 0)
    recorder.graph.sources.append(Sum(base, count, lefts[known], rights[known], recorder.module))
    recorder.codes.write(out, new_codes.to(out.device)[positions])
    return out


def trace_mean(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records a mean or a maximum over axes: all codes met along them must mean the same map."""
    x = args[0]
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    codes = recorder.codes.read(x)
    if not dims or codes is None or not x.numel():
        return NotImplemented
    out = func(*args, **kwargs)
    first = codes.amin(dims, keepdim=True)
    recorder.note_meeting(first, codes, recorder.describe(func))
    if func.overloadpacket is aten.amax:
        recorder.note_codes(codes, recorder.describe(func), Need.POSITIVE_SCALE)
    recorder.codes.write(out, first.reshape(out.shape))
    return out


def trace_attention(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records softmax attention, to which one constant added to all keys (..., N, D) of a head makes no difference.

    It adds the same number to all scores of a query, and the softmax runs over exactly these.
    """
    query, key, value, *rest = args
    mask = rest[0] if rest else kwargs.get("attn_mask")
    codes, reader = recorder.codes.read(key), recorder.describe(func)
    if codes is None or not key.numel():
        return NotImplemented
    recorder.note_read([tensor for tensor in (query, value, mask) if isinstance(tensor, Tensor)], reader)
    recorder.note_read([key], reader, Need.SAME_SCALE)
    recorder.note_meeting(codes[..., :1, :], codes, reader)
    return func(*args, **kwargs)


ARITHMETIC: dict[Any, Rule] = {
    aten.linear: trace_linear,
    aten.convolution: trace_convolution,
    aten.scaled_dot_product_attention: trace_attention,
    **dict.fromkeys((aten.matmul, aten.mm, aten.addmm), trace_matmul),
    **dict.fromkeys((aten.add, aten.add_), trace_add),
    **dict.fromkeys((aten.mean, aten.amax), trace_mean),
}
