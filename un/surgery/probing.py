"""Runs copies of modules on made-up inputs, to learn what they do whatever they are called."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from un.surgery.attachments import CALL_HOOKS, STATE_HOOKS, WEIGHT_HOOKS, make_plain

SHAPES = ((2, 3), (6,), (2, 3, 2), (2, 3, 2, 2))  # of inputs but C; a sequence first: its error is the one to report
AXES = (-1, 1, -2)  # where channels may be; of two that mean the same for every input a norm takes, the first is meant
TYPES = (torch.float64, torch.float32)  # the second for modules whose own constants are float32
# log10 of the smallest and largest rows of an input
ORDINARY = (-2.0, 1.0)  # small enough that eps, and anything that is not linear, shows
LARGE = (4.0, 7.0)  # eps = 1e-3 changes the smallest by 5e-12, squares of the largest fit float32
ALL = (-2.0, 7.0)
NO_CHILDREN: Mapping[str, nn.Module] = MappingProxyType({})


class ProbeError(ValueError):
    """Says why a module is not understood, as the end of a sentence; `is_other` where it does something else."""

    def __init__(self, reason: str, is_other: bool = False) -> None:
        super().__init__(reason)
        self.is_other = is_other


class Probe:
    """A copy of a module to experiment with: in evaluation mode, without hooks, shielded from its surroundings.

    Args:
        module: is left as it is.
        dtype: of the copy.
        children: what stands in the copy under these names.

    Raises:
        ProbeError: the module cannot be copied.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, children: Mapping[str, nn.Module] = NO_CHILDREN) -> None:
        self.dtype, self.device = dtype, torch.device("cpu")
        self.error = ""  # of the first call that failed
        # On the meta device: the copy's values mean nothing.
        self.is_empty = any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
        try:
            with _be_quiet(self.device):
                self.module = _copy(module, dtype)
                for name, child in children.items():
                    setattr(self.module, name, child)
        except Exception as error:  # foreign code can raise anything
            raise ProbeError(f"cannot be copied ({_shorten(error)})") from None
        self.device = next((tensor.device for tensor in self.module.parameters()), self.device)

    def call(self, x: Tensor) -> Tensor | None:
        """Returns the output in float64 on the CPU; None where it fails or gives no real numbers in x's shape."""
        try:
            with _be_quiet(self.device):
                # forward() and not __call__, which would run hooks that watch all modules.
                y = self.module.forward(x.to(self.device, self.dtype, copy=True))
                is_answer = isinstance(y, Tensor) and y.is_floating_point() and y.shape == x.shape
                return y.detach().cpu().double() if is_answer else None
        except Exception as error:  # foreign code can raise anything
            self.error = self.error or _shorten(error)
            return None

    def draw_parameters(self) -> None:
        """Gives all parameters values between 0.5 and 1.5, so that none is neutral and most functions are defined."""
        generator = torch.Generator().manual_seed(0)
        for parameter in self.module.parameters():
            parameter.data.copy_(torch.rand(parameter.shape, generator=generator, device="cpu") + 0.5)


def draw_inputs(num_channels: int, sizes: tuple[float, float] = LARGE) -> list[Tensor]:
    """Returns inputs (..., C) in float64 with the axes of SHAPES before C; each row comes with its negative.

    Rows differ in size and mean. No other axis has size C, so that a norm with C parameters refuses a wrong layout.
    """
    shapes = [[length + 2 * (length == num_channels) for length in shape] for shape in SHAPES]
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
    count = max(map(math.prod, shapes)) // 2
    rows = torch.randn(count, num_channels, **options) + torch.randn(count, 1, **options)
    rows *= 10 ** (sizes[0] + (sizes[1] - sizes[0]) * torch.rand(count, 1, **options))
    rows = torch.stack((rows, -rows), 1).flatten(0, 1)
    return [rows[: math.prod(shape)].view(*shape, num_channels) for shape in shapes]


def find_axis(
    probe: Probe,
    num_channels: int,
    explains: Callable[[Tensor, Tensor], bool],
    action: str,
    sizes: tuple[float, float] = LARGE,
) -> tuple[int, Tensor]:
    """Finds the axis of a module's channels by inputs of every layout.

    Args:
        probe: of the module.
        num_channels: C.
        explains: whether such a module over the last axis turns the first tensor into the second.
        action: what such a module does, for the error.
        sizes: log10 of the smallest and largest rows.

    Returns:
        The axis, and an input with channels there that the module takes.

    Raises:
        ProbeError: the module takes none of the inputs; it does something else to some; no axis serves all it takes.
    """
    taken: dict[int, dict[int, Tensor]] = {}  # number of axes -> axis -> input
    for rows in draw_inputs(num_channels, sizes):
        num_axes = rows.dim()
        for axis in dict.fromkeys(axis % num_axes for axis in AXES):
            x = rows.movedim(-1, axis)
            y = probe.call(x)
            if y is None:
                continue
            inputs = taken.setdefault(num_axes, {})
            if explains(x.movedim(axis, -1), y.movedim(axis, -1)):
                inputs[axis] = x
    if not taken:
        reason = probe.error or "its output has another shape or type"
        raise ProbeError(f"takes no input of {num_channels} channels in any layout ({reason})")
    if not all(taken.values()):
        raise ProbeError(f"does not {action}", is_other=True)
    for axis in AXES:
        if all(axis % num_axes in inputs for num_axes, inputs in taken.items()):
            return axis, next(inputs[axis % num_axes] for num_axes, inputs in taken.items())
    raise ProbeError("has its channels on an axis that depends on the number of axes")


def compare(modules: Sequence[nn.Module], num_channels: int, axis: int) -> list[Tensor]:
    """Returns what several modules make of one ordinary input that they all take, each (..., C) in float64.

    Raises:
        ProbeError: there is none.
    """
    for dtype in TYPES:
        probes = [Probe(module, dtype) for module in modules]
        for rows in draw_inputs(num_channels, ORDINARY):
            answers = [probe.call(rows.movedim(-1, axis)) for probe in probes]
            known = [y.movedim(axis, -1) for y in answers if y is not None]
            if len(known) == len(answers):
                return known
    raise ProbeError("takes no input")


def _copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copies a module without hooks and computed weights; of tensors in a graph, which torch refuses, the values."""
    memo: dict[int, Any] = {**copy_computed(module)}
    for part in module.modules():
        for kind in (*CALL_HOOKS, *STATE_HOOKS):
            hooks = getattr(part, kind)
            memo[id(hooks)] = OrderedDict((k, hook) for k, hook in hooks.items() if isinstance(hook, WEIGHT_HOOKS))
    copied = copy.deepcopy(module, memo).eval()
    for part in list(copied.modules()):
        make_plain(part)
    if any(tensor.is_meta for tensor in (*copied.parameters(), *copied.buffers())):
        copied = copied.to_empty(device="cpu")
        for buffer in copied.buffers():
            buffer.fill_(1)
    return copied.to(dtype)


def copy_computed(module: nn.Module) -> dict[int, Tensor]:
    """Returns copies of the tensors in a graph of gradients that a module holds, as a memo for `copy.deepcopy`.

    They are kept from an earlier forward, or weights that every forward computes anew, as pruning and weight_norm do.
    """
    leaves = [leaf for part in module.modules() for leaf in tree_leaves(vars(part)) if isinstance(leaf, Tensor)]
    return {id(leaf): leaf.detach().clone() for leaf in leaves if not leaf.is_leaf}


@contextlib.contextmanager
def _be_quiet(device: torch.device) -> Iterator[None]:
    """Shields foreign code from its surroundings, and them from it: gradients, autocast, random numbers, output."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(torch.device(device))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


def _shorten(error: Exception) -> str:
    """Returns an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
