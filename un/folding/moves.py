"""The rules of operations that only move values, and what an example cannot show of them.

Which values a mask, an index or a condition picks is the example's own, so all that it could have picked count as
picked: whatever is chosen from must mean the same. Selections that are empty on the example are made to hold one row,
so that what reads them is followed. Padding and concatenation count as if they added values, however many they add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from un.folding.arithmetic import Rule
from un.folding.graph import Need
from un.folding.recorder import Recorder

aten = torch.ops.aten


def trace_move(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records an operation whose result has known values of its operands at places that do not depend on values."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not recorder.has_codes(tensors):
        return NotImplemented
    codes = func(*tree_map(lambda leaf: _exchange(recorder, leaf), tuple(args)), **kwargs)
    return _finish(recorder, func, tensors, func(*args, **kwargs), codes)


def _exchange(recorder: Recorder, leaf: Any) -> Any:
    """Returns the codes of a tensor, zeros where it has none; whole numbers as they are."""
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    return recorder.codes.read_filled(leaf).clone()


def trace_cast(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records a copy in another type; whole numbers are no longer what they were cast from."""
    dtype = kwargs.get("dtype")
    codes = recorder.codes.read(args[0])
    if codes is None or not (dtype is None or dtype.is_floating_point):
        return NotImplemented
    return _finish(recorder, func, args[:1], func(*args, **kwargs), codes)


def trace_overwrite(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records the writing of values over others, which could remain on another input: the place may be a slice."""
    target, source = args[0], args[1] if len(args) > 1 else 0.0
    if target.dtype == torch.bool:
        return NotImplemented
    codes = recorder.codes.read(source) if isinstance(source, Tensor) and target.is_floating_point() else None
    old = recorder.codes.read(target)
    if codes is None and old is None:
        return NotImplemented
    if codes is None:
        codes = torch.zeros((), dtype=torch.float64, device=target.device)
    codes = codes.expand(target.shape).clone()  # source and target may be views of one memory
    if old is not None:
        recorder.note_meeting(torch.where(old != 0, old, codes), codes, recorder.describe(func))
    sources = [source] if isinstance(source, Tensor) else []
    return _finish(recorder, func, sources, func(*args, **kwargs), codes)


def trace_concatenation(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records tensors laid side by side; one of width 0 counts as if it had some."""
    parts = args[0]
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    full = [part for part in parts if part.numel()]
    for absent in (part for part in parts if not part.numel()):
        for part in full:
            _meet_absent(recorder, part, absent, dim, recorder.describe(func))
    out = trace_move(recorder, func, args, kwargs)
    if out is NotImplemented:
        out = func(*args, **kwargs)
        if not recorder.note_concatenated_bias(parts, out):
            recorder.note_read(parts, recorder.describe(func))
    return out


def _meet_absent(recorder: Recorder, part: Tensor, absent: Tensor, dim: int, reader: str) -> None:
    """Notes that `absent`, which is empty here, may stand beside `part` along an axis."""
    codes, beside = recorder.codes.read(part), recorder.codes.read_beside(absent)
    if codes is not None and beside is not None and codes.narrow(dim, 0, 1).shape == beside.shape:
        recorder.note_meeting(codes.narrow(dim, 0, 1), beside, reader)
        return
    for mixed in (codes, beside):
        if mixed is not None:
            recorder.note_meeting(mixed, torch.zeros_like(mixed), reader)


def trace_choice(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records a result that has the value of one of several operands everywhere, as a condition says."""
    if len(args) < 3:
        return NotImplemented  # where(condition) lists positions
    operands = args[1:] if func.overloadpacket is aten.where else (args[0], args[2])
    tensors = [operand for operand in operands if isinstance(operand, Tensor)]
    if not recorder.has_codes(tensors):
        return NotImplemented
    codes = [_read_operand(recorder, operand) for operand in operands]
    out = func(*args, **kwargs)
    chosen, *others = [of_one.expand(out.shape) for of_one in codes if of_one is not None]
    for other in others:
        recorder.note_meeting(chosen, other, recorder.describe(func))
        chosen = torch.where(chosen != 0, chosen, other)
    if None in codes:
        recorder.note_codes(chosen, recorder.describe(func), Need.NO_SHIFT)
    return _finish(recorder, func, tensors, out, chosen)


def _read_operand(recorder: Recorder, operand: Tensor | float) -> Tensor | None:
    """Returns the codes of an operand; None for a zero, whose place may be taken by any channel without a shift."""
    if not isinstance(operand, Tensor):
        return None if operand == 0 else torch.zeros((), dtype=torch.float64)
    return recorder.codes.read_filled(operand).clone()


def trace_padding(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Records constants put around a tensor, where the width may be 0 on the example."""
    x = args[0]
    codes = recorder.codes.read(x)
    if codes is None or not x.numel():
        return NotImplemented
    recorder.note_meeting(codes, torch.zeros_like(codes), recorder.describe(func))
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
        recorder.note_raw_read(x, recorder.describe(func))
        return func(*args, **kwargs)
    if not all(index is None or recorder.catalog.find(index) is not None for index in indices):
        first = codes
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        recorder.note_meeting(first, codes, recorder.describe(func))
    moved = func(codes.clone(), *args[1:], **kwargs)
    return _finish(recorder, func, [x], func(*args, **kwargs), moved)


def trace_assignment(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Runs an assignment to positions picked by a mask as if it picked one; it needs the values themselves."""
    target, indices, values, *rest = args
    recorder.note_read([target, values], recorder.describe(func))
    out = func(target, _fill_empty_masks(indices), values, *rest, **kwargs) if values.numel() else target
    recorder.codes.forget(out)
    return out


def trace_positions(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Lists where a mask is True, and the first place if it is nowhere."""
    recorder.note_read(args[:1], recorder.describe(func))
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


def _finish(recorder: Recorder, func: Any, read: Sequence[Tensor], out: Tensor, codes: Tensor) -> Tensor:
    for tensor in read:
        recorder.note_raw_read(tensor, recorder.describe(func))
    recorder.codes.write(out, codes)
    return out


MOVES: dict[Any, Rule] = {
    **dict.fromkeys((aten.clone, aten.stack, aten.roll, aten.flip, aten.repeat, aten.im2col), trace_move),
    **dict.fromkeys((aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle), trace_move),
    **dict.fromkeys((aten.copy_, aten.fill_, aten.zero_), trace_overwrite),
    **dict.fromkeys((aten.where, aten.masked_fill, aten.masked_fill_), trace_choice),
    **dict.fromkeys((aten.index, aten.index_select, aten.gather), trace_selection),
    **dict.fromkeys((aten.index_put, aten.index_put_), trace_assignment),
    aten._to_copy: trace_cast,
    aten.cat: trace_concatenation,
    aten.constant_pad_nd: trace_padding,
    aten.nonzero: trace_positions,
}
