"""The operations that have rules: linear maps, sums, means, what attention does to keys, and those that move values.

A rule runs its operation and records it, or returns NotImplemented where the operation is not of the kind it knows.

Which values a mask, an index or a condition picks is the example's own, so all that it could have picked count as
picked: whatever is chosen from must mean the same. Selections that are empty on the example are made to hold one row,
so that what reads them is followed. Padding and concatenation count as if they added values, however many they add.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from un.folding.graph import Need
from un.folding.recorder import Recorder

aten = torch.ops.aten

Rule = Callable[[Recorder, Any, Any, Any], Any]


# --- arithmetic -----------------------------------------------------------------------------------------------------


def trace_linear(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records x W^T + b."""
    x, weight, *rest = args
    return _apply_linear(recorder, func, args, kwargs, x, weight, rest[0] if rest else kwargs.get("bias"))


def trace_matmul(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records x W of a matrix W."""
    x, matrix = args
    if matrix.dim() != 2 or x.dim() < 2:
        return NotImplemented
    return _apply_linear(recorder, func, args, kwargs, x, matrix.t(), None)


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
    recorder.record_raw_read(x, f"input of a linear map in {recorder.module}")
    recorder.record_linear(x, weight, bias, out, axis=-1, groups=1)
    return out


def trace_convolution(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records a convolution, which is a linear map over axis 1 for every offset of its kernel."""
    x, weight, bias, _, padding, _, transposed, _, groups = args
    if recorder.catalog.find(weight) is None or transposed or x.dim() != weight.dim():
        return NotImplemented
    out = func(*args, **kwargs)
    recorder.record_raw_read(x, f"input of a convolution in {recorder.module}")
    if any(padding):
        recorder.record_read([x], f"zero padding of the convolution in {recorder.module}", Need.NO_SHIFT)
    recorder.record_linear(x, weight, bias, out, axis=1, groups=groups)
    return out


def trace_add(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records a sum of two tensors."""
    left, right = args
    if not isinstance(right, Tensor) or kwargs.get("alpha", 1) != 1:
        return NotImplemented
    if not (left.is_floating_point() and right.is_floating_point()):
        return NotImplemented
    known = _has_codes(recorder, (left, right))
    out = func(*args, **kwargs)
    if known:
        recorder.record_sum(left, right, out)
    else:
        recorder.record_read((left, right), recorder.describe(func))
    return out


def trace_mean(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records a mean or a maximum over axes."""
    x = args[0]
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    if not dims or recorder.codes.read(x) is None or not x.numel():
        return NotImplemented
    out = func(*args, **kwargs)
    need = Need.POSITIVE_SCALE if func.overloadpacket is aten.amax else None
    recorder.record_mean(x, dims, out, recorder.describe(func), need)
    return out


def trace_attention(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records softmax attention, to which one constant added to all keys of a head makes no difference.

    It adds the same number to all scores of a query, and the softmax runs over exactly these.
    """
    query, key, value, *rest = args
    mask = rest[0] if rest else kwargs.get("attn_mask")
    if recorder.codes.read(key) is None or not key.numel():
        return NotImplemented
    out = func(*args, **kwargs)
    others = [tensor for tensor in (query, value, mask) if isinstance(tensor, Tensor)]
    recorder.record_read(others, recorder.describe(func))
    recorder.record_keys(key, recorder.describe(func))
    return out


# --- moves ----------------------------------------------------------------------------------------------------------


def trace_move(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records an operation whose result has known values of its operands at places that do not depend on values."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not _has_codes(recorder, tensors):
        return NotImplemented
    codes = func(*tree_map(lambda leaf: _exchange(recorder, leaf), tuple(args)), **kwargs)
    return _finish(recorder, func, tensors, func(*args, **kwargs), codes)


def _exchange(recorder: Recorder, leaf: Any) -> Any:
    """Returns the codes of a tensor, zeros where it has none; whole numbers as they are."""
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    codes = recorder.codes.read(leaf)
    return torch.zeros_like(leaf, dtype=torch.float64) if codes is None else codes.clone()


def trace_cast(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records a copy in another type; whole numbers are no longer what they were cast from."""
    dtype = kwargs.get("dtype")
    codes = recorder.codes.read(args[0])
    if codes is None or not (dtype is None or dtype.is_floating_point):
        return NotImplemented
    return _finish(recorder, func, args[:1], func(*args, **kwargs), codes)


def trace_overwrite(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records the writing of values over others."""
    target, source = args[0], args[1] if len(args) > 1 else 0.0
    if target.dtype == torch.bool:
        return NotImplemented
    codes = recorder.codes.read(source) if isinstance(source, Tensor) and target.is_floating_point() else None
    if codes is None and recorder.codes.read(target) is None:
        return NotImplemented
    if codes is None:
        codes = torch.zeros((), dtype=torch.float64, device=target.device)
    else:
        codes = codes.expand(target.shape).clone()  # source and target may be views of one memory
    sources = [source] if isinstance(source, Tensor) else []
    return _finish(recorder, func, sources, func(*args, **kwargs), codes)


def trace_concatenation(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records tensors laid side by side; one of width 0 counts as if it had some."""
    parts = args[0]
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    full = [part for part in parts if part.numel()]
    for absent in (part for part in parts if not part.numel()):
        for part in full:
            recorder.record_absent(part, absent, dim, recorder.describe(func))
    out = trace_move(recorder, func, args, kwargs)
    if out is NotImplemented:
        out = func(*args, **kwargs)
        if not recorder.record_concatenated_bias(parts, out):
            recorder.record_read(parts, recorder.describe(func))
    return out


def trace_choice(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records a result that has the value of one of several operands everywhere, as a condition says."""
    if len(args) < 3:
        return NotImplemented  # where(condition) lists positions
    operands = args[1:] if func.overloadpacket is aten.where else (args[0], args[2])
    tensors = [operand for operand in operands if isinstance(operand, Tensor)]
    if not _has_codes(recorder, tensors):
        return NotImplemented
    codes = [_read_operand(recorder, operand) for operand in operands]
    out = func(*args, **kwargs)
    chosen = recorder.record_choice(codes, out.shape, recorder.describe(func))
    return _finish(recorder, func, tensors, out, chosen)


def _read_operand(recorder: Recorder, operand: Tensor | float) -> Tensor | None:
    """Returns the codes of an operand; None for a zero, whose place may be taken by any channel without a shift."""
    if not isinstance(operand, Tensor):
        return None if operand == 0 else torch.zeros((), dtype=torch.float64)
    codes = recorder.codes.read(operand)
    return torch.zeros((), dtype=torch.float64, device=operand.device) if codes is None else codes.clone()


def trace_padding(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records constants put around a tensor, where the width may be 0 on the example."""
    x = args[0]
    codes = recorder.codes.read(x)
    if codes is None or not x.numel():
        return NotImplemented
    recorder.record_mixture(codes, recorder.describe(func))
    codes = aten.constant_pad_nd(codes.clone(), args[1], 0.0)
    return _finish(recorder, func, [x], func(*args, **kwargs), codes)


def trace_selection(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records positions picked by a tensor of indices or a mask; a stored one picks the same for every input."""
    x = args[0]
    if func.overloadpacket is aten.index:
        indices = _fill_empty_masks(args[1])
        args = (x, indices)
        dims = [dim for dim, index in enumerate(indices) if index is not None]
    else:
        indices = [args[2]]
        dims = [args[1] % max(x.dim(), 1)]
    codes = recorder.codes.read(x)
    if codes is None or not x.numel():
        if func.overloadpacket is not aten.index:
            return NotImplemented
        recorder.record_raw_read(x, recorder.describe(func))
        return func(*args, **kwargs)
    if not all(index is None or recorder.catalog.find(index) is not None for index in indices):
        recorder.record_selection(codes, dims, recorder.describe(func))
    moved = func(codes.clone(), *args[1:], **kwargs)
    return _finish(recorder, func, [x], func(*args, **kwargs), moved)


def trace_assignment(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Runs an assignment to positions picked by a mask as if it picked one; it needs the values themselves."""
    target, indices, values, *rest = args
    recorder.record_read([target, values], recorder.describe(func))
    out = func(target, _fill_empty_masks(indices), values, *rest, **kwargs) if values.numel() else target
    recorder.codes.forget(out)
    return out


def trace_positions(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Lists where a mask is True, and the first place if it is nowhere."""
    recorder.record_read(args[:1], recorder.describe(func))
    return _find_positions(args[0])


def _find_positions(mask: Tensor) -> Tensor:
    """Returns positions (K, dims), or one row of zeros where there is none and could be some."""
    positions = mask.nonzero()
    empty = not len(positions) and mask.numel()
    return positions.new_zeros(1, mask.dim()) if empty else positions


def _fill_empty_masks(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Replaces masks by the positions where they are True, at least one."""
    filled: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            filled.extend(_find_positions(index).unbind(1))
        else:
            filled.append(index)
    return filled


def _has_codes(recorder: Recorder, tensors: Sequence[Tensor]) -> bool:
    return any(recorder.codes.read(tensor) is not None for tensor in tensors)


def _finish(recorder: Recorder, func: Any, read: Sequence[Tensor], out: Tensor, codes: Tensor) -> Tensor:
    for tensor in read:
        recorder.record_raw_read(tensor, recorder.describe(func))
    recorder.codes.write(out, codes)
    return out


RULES: dict[Any, Rule] = {
    aten.linear: trace_linear,
    aten.addmm: trace_addmm,
    aten.convolution: trace_convolution,
    aten.scaled_dot_product_attention: trace_attention,
    **dict.fromkeys((aten.matmul, aten.mm), trace_matmul),
    **dict.fromkeys((aten.add, aten.add_), trace_add),
    **dict.fromkeys((aten.mean, aten.amax), trace_mean),
    **dict.fromkeys((aten.clone, aten.stack, aten.roll, aten.flip, aten.repeat, aten.im2col), trace_move),
    **dict.fromkeys((aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle), trace_move),
    **dict.fromkeys((aten.slice_scatter, aten.select_scatter), trace_move),
    **dict.fromkeys((aten.copy_, aten.fill_, aten.zero_), trace_overwrite),
    **dict.fromkeys((aten.where, aten.masked_fill, aten.masked_fill_), trace_choice),
    **dict.fromkeys((aten.index, aten.index_select, aten.gather), trace_selection),
    **dict.fromkeys((aten.index_put, aten.index_put_), trace_assignment),
    aten._to_copy: trace_cast,
    aten.cat: trace_concatenation,
    aten.constant_pad_nd: trace_padding,
    aten.nonzero: trace_positions,
}
