"""Recognises the norms of a model by what they do.

A norm of `un.norms` is known by its class. Every other one is measured: a norm over channels subtracts a row's mean or
not, divides by the row's size, and multiplies and adds one value per channel. Modules with a `normalized_shape` claim
to be one (`nn.LayerNorm`, `nn.RMSNorm`, the norms of timm, apex and fairseq), so it is an obstacle where they are not;
modules without it (LlamaRMSNorm, T5LayerNorm, segment-anything's LayerNorm2d) are norms where measurement says so.
BatchNorm and GroupNorm, which mean something else, are never norms here.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from un.norms.core.base import Norm
from un.surgery.layout import ChannelFirst, find_inner
from un.surgery.measurement import NORMALIZERS, SATURATION, Normalizer, NormTraits, measure
from un.surgery.probing import Probe, ProbeError, compare

TORCH = "torch."  # none of its modules without normalized_shape is a norm over channels
OTHER_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LocalResponseNorm)
NAME_OF_NORM = re.compile(r"norm(layer|zero|gated|fp\d+|\d\w*)?$", re.IGNORECASE)
UNKNOWN_SIZE = 8  # channels of the inputs for a module without parameters that tell their number

T = TypeVar("T")


def recognize_norm(module: nn.Module) -> NormTraits | None:
    """Returns what is known of a module that is a norm over channels, or looks like one; None for any other."""
    if isinstance(module, ChannelFirst):
        inner = recognize_norm(module.norm)
        return None if inner is None else dataclasses.replace(inner, axis=module.axis)
    if isinstance(module, Norm):
        return _read_own(module)
    if _has_normalized_shape(module):
        shape = getattr(module, "normalized_shape", None)
        sizes = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
        if len(sizes) != 1 or not isinstance(sizes[0], Integral):
            size = math.prod(size for size in sizes if isinstance(size, int))
            return NormTraits(size, obstacle=f"normalises over axes of shape {sizes}, not over channels alone")
        return _recognize_claimed(module, int(sizes[0]))
    if parametrize.type_before_parametrizations(module).__module__.startswith(TORCH):
        return None
    return _recognize_unclaimed(module)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm over channels, of `un.norms`, with a `normalized_shape`, or by what it does."""
    traits = recognize_norm(module)
    return traits is not None and traits.is_site


def walk_norms(
    model: nn.Module, recognize: Callable[[nn.Module], T | None]
) -> list[tuple[tuple[str, ...], nn.Module, T]]:
    """Returns the dotted names of every norm, the norm, and what was recognised in it, in module order.

    A norm has several names where the model holds it more than once. Norms inside norms are passed over.

    Args:
        model: is not a norm itself.
        recognize: returns something for a norm and None for other modules, as `recognize_norm` does.
    """
    found: dict[nn.Module, T] = {}
    names: dict[nn.Module, list[str]] = {}

    def walk(module: nn.Module, prefix: str) -> None:
        for attribute, child in module._modules.items():  # named_children() would skip a shared child's second name
            if child is None:
                continue
            recognized = found[child] if child in found else recognize(child)
            if recognized is None:
                walk(child, f"{prefix}{attribute}.")
            else:
                found[child] = recognized
                names.setdefault(child, []).append(f"{prefix}{attribute}")

    walk(model, "")
    return [(tuple(names[norm]), norm, recognized) for norm, recognized in found.items()]


def list_norms(model: nn.Module) -> list[tuple[str, nn.Module, int]]:
    """Returns name, module and axis of its channels for every norm of a model that is understood.

    A norm inside a norm belongs to the outer one, a shared norm has its first name, and `ChannelFirst` is looked into.
    """
    listed = []
    for names, norm, traits in walk_norms(model, recognize_norm):
        if not traits.obstacle:
            inner = find_inner(norm)
            listed.append((names[0], inner, traits.axis if inner is norm else -1))
    return listed


def _has_normalized_shape(module: nn.Module) -> bool:
    """Whether the attribute is the module's own and not passed on from a module inside, as wrappers do."""
    own = "normalized_shape" in vars(module) or hasattr(type(module), "normalized_shape")
    return own or (isinstance(module, torch.jit.ScriptModule) and hasattr(module, "normalized_shape"))


def _read_own(norm: Norm) -> NormTraits:
    try:
        probe = Probe(norm, torch.float64)  # whose weights are parameters, however they were computed
    except ProbeError as error:
        return NormTraits(norm.num_features, obstacle=str(error))
    assert isinstance(probe.module, Norm)
    weight, bias = probe.module.read_affine()
    has_affine = weight is not None
    if probe.is_empty:
        weight = bias = None
    return NormTraits(norm.num_features, -1, weight, bias, has_affine)


def _recognize_claimed(module: nn.Module, num_channels: int) -> NormTraits:
    try:
        # Dynamic Tanh claims to be a norm, too, and can be replaced like one.
        return _measure_with_children(module, num_channels, (*NORMALIZERS, SATURATION))
    except ProbeError as error:
        return NormTraits(num_channels, obstacle=str(error))


def _recognize_unclaimed(module: nn.Module) -> NormTraits | None:
    """Recognises a norm without `normalized_shape` by measurement, or by its name where it cannot be measured."""
    is_called_norm = NAME_OF_NORM.search(parametrize.type_before_parametrizations(module).__name__) is not None
    children = _list_children(module)
    if children and (not is_called_norm or any(map(_holds_norm, children.values()))):
        return None
    num_channels = _count_channels(module)
    if not (num_channels or is_called_norm):
        return None
    if num_channels is None:
        return NormTraits(0, obstacle="has parameters that are not one value per channel", is_claimed=False)
    try:
        traits = _measure_with_children(module, num_channels or UNKNOWN_SIZE, NORMALIZERS)
    except ProbeError as error:
        seems_norm = is_called_norm and not error.is_other
        return NormTraits(num_channels, obstacle=str(error), is_claimed=False) if seems_norm else None
    unknown = "" if num_channels else "has no parameter that tells the number of its channels"
    return dataclasses.replace(traits, num_features=num_channels, obstacle=traits.obstacle or unknown, is_claimed=False)


def _measure_with_children(module: nn.Module, num_channels: int, normalizers: Sequence[Normalizer]) -> NormTraits:
    """Measures a norm and what it does with modules of its own.

    Raises:
        ProbeError: it cannot be measured.
    """
    extra, children = list_extra_inputs(module), _list_children(module)
    adaptive = f"takes more inputs than one ({', '.join(extra)}), as adaptive norms do"
    try:
        measured = measure(module, num_channels, normalizers, dict.fromkeys(children, nn.Identity()))
    except ProbeError as error:
        raise (ProbeError(adaptive) if extra and not error.is_other else error) from None
    obstacle = adaptive if extra else ""
    if children and not extra and not _is_applied_to_result(module, list(children), num_channels, measured.axis):
        obstacle = f"does more with modules of its own than apply them to the result ({', '.join(children)})"
    return dataclasses.replace(measured, rest=tuple(children.values()), obstacle=obstacle)


def _holds_norm(module: nn.Module) -> bool:
    return any(isinstance(part, OTHER_NORMS) or is_norm(part) for part in module.modules())


def _list_children(module: nn.Module) -> dict[str, nn.Module]:
    """Returns its modules by name; an Identity means that there is none."""
    children = module.named_children()
    return {k: v for k, v in children if k != "parametrizations" and not isinstance(v, nn.Identity)}


def _count_channels(module: nn.Module) -> int | None:
    """Returns the common length of its parameters; 0 for scalars only, None where there are other shapes."""
    children, sizes = _list_children(module), set()
    for name, parameter in module.named_parameters():
        if name.partition(".")[0] in children:
            continue
        if nn.parameter.is_lazy(parameter) or parameter.numel() != max(parameter.shape, default=1):
            return None
        sizes.add(parameter.numel())
    sizes -= {1}
    return None if len(sizes) > 1 else sizes.pop() if sizes else 0


def list_extra_inputs(module: nn.Module) -> list[str]:
    """Returns the names of what `forward` takes besides x."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # not written in Python
        return []
    return [p.name for p in parameters[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


class _Mark(nn.Module):
    """Leaves a trace in what it is given that tells whether, where and in which order it was used."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return (self.number + 2) * x + 1


def _is_applied_to_result(module: nn.Module, names: list[str], num_channels: int, axis: int) -> bool:
    """Whether a norm applies its modules to its result, in the order of `names`, and does nothing else with them."""
    marks = {name: _Mark(number) for number, name in enumerate(names)}
    bare = Probe(module, torch.float64, dict.fromkeys(names, nn.Identity()))
    marked = Probe(module, torch.float64, marks)
    for probe in (bare, marked):
        probe.draw_parameters()
    try:
        expected, y = compare((bare.module, marked.module), num_channels, axis)
    except ProbeError:
        return False
    for mark in marks.values():
        expected = mark(expected)
    return torch.allclose(y, expected)
