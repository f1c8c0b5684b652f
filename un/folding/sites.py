"""Finds the norms and LayerScales of a model and reads the per-channel map that can leave each of them."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from un.norms.base import Norm, statistics_dtype
from un.norms.layout import ChannelFirst, is_channel_first


@dataclass(frozen=True)
class Site:
    """A norm of the model, or a LayerScale, which is treated as a norm that is only a scale.

    Attributes:
        names: dotted names, several where the model holds one norm more than once.
        norm: the module.
        scale: (C,), float64, of the map y = scale * x + shift that folding may move.
        shift: (C,), float64.
        offline: whether the map is all that the norm does at inference; otherwise it follows a part that stays.
        channel_axis: of the norm's output, 1 or -1.
        obstacle: why nothing of this norm can be moved; empty where it can.
        is_layer_scale: whether it is a LayerScale.
    """

    names: tuple[str, ...]
    norm: nn.Module
    scale: Tensor
    shift: Tensor
    offline: bool
    channel_axis: int
    obstacle: str = ""
    is_layer_scale: bool = False

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    def describe(self) -> str:
        """Class and channels, e.g. UnifiedNorm(192)."""
        inner = find_inner(self.norm)
        text = f"{type(inner).__name__}({len(self.scale)})"
        return text if inner is self.norm else f"ChannelFirst({text})"


def find_sites(model: nn.Module) -> list[Site]:
    """Every norm over channels and LayerScale in module order; norms inside norms belong to the outer one."""
    names: dict[nn.Module, list[str]] = {}
    _collect(model, "", names)
    return [_read_site(norm, tuple(of_norm)) for norm, of_norm in names.items()]


def find_inner(norm: nn.Module) -> nn.Module:
    """The norm inside a layout wrapper, or the norm itself."""
    return norm.norm if isinstance(norm, ChannelFirst) else norm


def find_scaled_axis(module: nn.Module) -> int | None:
    """The axis of which a module multiplies every channel by its own parameter, -1 or 1; None where it does not.

    LayerScales have no class or attribute in common, so a copy of every module with one vector and nothing else is
    asked: with a random vector, only a plain multiplication gives the product.
    """
    vectors = list(module.parameters())
    if [vector.dim() for vector in vectors] != [1] or any(True for _ in (*module.buffers(), *module.children())):
        return None
    probe = copy.deepcopy(module)
    (vector,) = probe.parameters()
    num_channels = len(vector)
    generator = torch.Generator().manual_seed(0)
    vector.copy_(torch.randn(num_channels, generator=generator))
    for shape, axis in (((2, 3, num_channels), -1), ((2, num_channels, 3, 4), 1)):
        x = torch.randn(shape, generator=generator).to(vector)
        expected = (x.movedim(axis, -1) * vector).movedim(-1, axis)
        try:
            y = probe.forward(x.clone())
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue
        if isinstance(y, Tensor) and y.shape == expected.shape and torch.allclose(y, expected):
            return axis
    return None


def remove_affine(norm: nn.Module) -> None:
    """Takes weight and bias out of a norm which goes on without them."""
    inner = find_inner(norm)
    for name in ("weight", "bias"):
        if name in inner._parameters:
            inner.register_parameter(name, None)
    if hasattr(inner, "elementwise_affine"):
        inner.elementwise_affine = False  # type: ignore[assignment]


def _collect(module: nn.Module, prefix: str, names: dict[nn.Module, list[str]]) -> None:
    for attribute, child in module._modules.items():
        if child is None:
            continue
        is_norm = isinstance(child, Norm | ChannelFirst) or hasattr(child, "normalized_shape")
        if is_norm or find_scaled_axis(child) is not None:
            names.setdefault(child, []).append(prefix + attribute)
        else:
            _collect(child, f"{prefix}{attribute}.", names)


def _read_site(norm: nn.Module, names: tuple[str, ...]) -> Site:
    scaled_axis = None if hasattr(norm, "normalized_shape") else find_scaled_axis(norm)
    if scaled_axis is not None:
        factor = next(norm.parameters()).detach().double()
        return Site(names, norm, factor, torch.zeros_like(factor), True, scaled_axis, is_layer_scale=True)
    inner = find_inner(norm)
    axis, obstacle = -1, ""
    if isinstance(norm, ChannelFirst):
        axis = 1
    elif not isinstance(norm, Norm):
        shape = tuple(norm.normalized_shape)  # type: ignore[arg-type]
        if len(shape) != 1:
            obstacle = f"normalises over axes of shape {shape}"
        elif any(not isinstance(child, nn.Identity) for child in norm.children()):
            obstacle = "has an activation of its own"
        elif is_channel_first(norm):
            axis = 1
    affine = norm.affine() if isinstance(norm, Norm | ChannelFirst) and hasattr(inner, "affine") else None
    if affine is not None:
        scale, shift = affine
        return Site(names, norm, scale.detach().double(), shift.detach().double(), True, axis)
    scale, shift = _read_parameters(inner)
    return Site(names, norm, scale, shift, False, axis, obstacle)


def _read_parameters(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias in float64, flattened, with 1 and 0 for those that are not there."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    known = next((value for value in (weight, bias) if value is not None), torch.zeros(0))
    shape: Any = getattr(norm, "normalized_shape", None) or (norm.num_features,)
    ones = torch.ones(math.prod(shape), dtype=torch.float64, device=known.device)
    scale = ones if weight is None else weight.detach().double().flatten()
    shift = torch.zeros_like(ones) if bias is None else bias.detach().double().flatten()
    return scale, shift


def read_dtype(norm: nn.Module) -> torch.dtype:
    """The type in which what is left of a norm should be stored: that of its statistics."""
    inner = find_inner(norm)
    tensors = [*inner.parameters(), *inner.buffers()]
    widest = max((t.dtype for t in tensors if t.is_floating_point()), key=lambda dtype: dtype.itemsize, default=None)
    return statistics_dtype(widest or torch.get_default_dtype())
