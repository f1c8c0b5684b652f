"""Padding after a norm that has left: the folded model puts in what the norm would have made the constant.

Zeros after y = a x + e are -e / a before it (rule R6 of the specification). Which windows are padded, and by how much,
depends on the size of the input, so every call of `F.pad` counts, also one that adds nothing on the example.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from un.folding.codes import lay_along
from un.folding.graph import Padding
from un.folding.recorder import Recorder

PAD_ARGUMENTS = ("input", "pad", "mode", "value")
FILL = "padding_fill_"  # buffers of a module that pads: this and the number of the call


class PaddingTracer(TorchFunctionMode):
    """Records calls of `F.pad` while a model is traced; must be entered before the tracer of operations."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.pad:
            return func(*args, **kwargs)
        for call in self.recorder.calls:
            call.num_paddings += 1
        x, widths, value = _read_arguments(args, kwargs)
        with _disable_current_modes():
            channels = self._find_channels(x, widths)
            if value is not None and channels is not None:
                out = func(*args, **kwargs)
                self._record(x, *channels, value, out)
                return out
        return func(*args, **kwargs)

    def _find_channels(self, x: Tensor, widths: list[int]) -> tuple[int, Tensor] | None:
        """Returns the axis along which alone the codes of x differ, if it is not padded, and the codes along it."""
        codes = self.recorder.codes.read(x)
        if codes is None or not x.numel():
            return None
        for axis in (-1, *range(1, x.dim() - 1)):
            rows = codes.movedim(axis, -1).reshape(-1, x.shape[axis])
            if not _is_padded(axis, x.dim(), widths) and bool((rows == rows[:1]).all()):
                return axis, rows[0]
        return None

    def _record(self, x: Tensor, axis: int, row: Tensor, value: float, out: Tensor) -> None:
        """Notes a call with a constant, and codes its output: padding has the codes of its channel."""
        recorder, call = self.recorder, self.recorder.calls[-1]
        index, reader = call.num_paddings - 1, f"padding in {recorder.module}"
        padding = Padding(call.name, index, axis, x.dim(), row.long().cpu(), value, reader)
        recorder.graph.paddings.append(padding)
        recorder.note_raw_read(x, reader)
        recorder.codes.write(out, lay_along(row, out, axis))


def install_fills(module: nn.Module, fills: Mapping[str, Tensor], counts: Collection[int]) -> None:
    """Gives a module, which may call `F.pad` as often in one forward as `counts` say, the fills of its calls.

    Their names are `FILL` and the number of the call; they have the shape of one position of what is padded.
    """
    for name, fill in fills.items():
        module.register_buffer(name, fill)
    module.forward = PaddedForward(module, counts).run


def find_padded_forward(module: nn.Module) -> PaddedForward | None:
    """Returns what runs a module that `install_fills` has prepared; None for any other."""
    owner = getattr(module.forward, "__self__", None)
    return owner if isinstance(owner, PaddedForward) else None


class PaddedForward:
    """The forward of a module that pads with fills."""

    def __init__(self, module: nn.Module, counts: Collection[int]) -> None:
        self.module, self.counts = module, tuple(counts)
        self._unpadded: set[tuple[Any, ...]] = set()  # shapes of inputs of calls that padded nothing

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module.

        Raises:
            ValueError: it pads more or less often than on the example, or is compiled and may pad: torch.compile calls
                `F.pad` past every mode.
        """
        kind = type(self.module)
        shapes = tuple(tuple(value.shape) for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        if torch.compiler.is_dynamo_compiling():
            if shapes not in self._unpadded:
                raise ValueError(
                    f"{kind.__name__} of this folded model pads, which a compiler cannot follow: first call the model "
                    "uncompiled on inputs of this size; it compiles only if nothing is padded there"
                )
            return kind.forward(self.module, *args, **kwargs)
        calls: list[list[int]] = []
        with FillPadding(self.module, calls):
            out = kind.forward(self.module, *args, **kwargs)
        if len(calls) not in self.counts:
            raise ValueError(
                f"{kind.__name__} of this folded model pads {len(calls)} times, unlike on the example it was folded on"
            )
        if not any(width for widths in calls for width in widths):
            self._unpadded.add(shapes)
        return out


class FillPadding(TorchFunctionMode):
    """Puts the fills of a module in the place of the constants of its calls of `F.pad`, whose widths it notes."""

    def __init__(self, module: nn.Module, calls: list[list[int]]) -> None:
        super().__init__()
        self.module, self.calls = module, calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.pad:
            return func(*args, **kwargs)
        x, widths, value = _read_arguments(args, kwargs)
        fill = getattr(self.module, f"{FILL}{len(self.calls)}", None)
        self.calls.append(widths)
        if fill is None:
            return func(*args, **kwargs)
        channels = [axis for axis, length in enumerate(fill.shape) if length > 1]
        if value is None or fill.dim() != x.dim() or any(_is_padded(axis, x.dim(), widths) for axis in channels):
            raise ValueError(
                f"{type(self.module).__name__} of this folded model pads an input of shape {tuple(x.shape)} by "
                f"{widths}, unlike on the example it was folded on"
            )
        if not any(widths):
            return x
        fill = fill.to(x.dtype)
        return F.pad(x - fill, widths) + fill


def _read_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, list[int], float | None]:
    """Returns the input of `F.pad`, the widths, and the constant, None in other modes."""
    given = {"mode": "constant", "value": None, **dict(zip(PAD_ARGUMENTS, args, strict=False)), **kwargs}
    value = float(given["value"] or 0.0) if given["mode"] == "constant" else None
    return given["input"], [int(width) for width in given["pad"]], value


def _is_padded(axis: int, num_dims: int, widths: list[int]) -> bool:
    """Whether widths, which count axes from the back, pad or crop an axis."""
    place = (-1 - axis if axis < 0 else num_dims - 1 - axis) * 2
    return any(widths[place : place + 2])
