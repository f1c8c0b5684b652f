"""Finds the norms and LayerScales of a model and reads the per-channel map that can leave each of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from un.norms.core.base import Norm, statistics_dtype
from un.surgery.attachments import make_plain
from un.surgery.layout import find_inner
from un.surgery.measurement import FIT_TOLERANCE, NORMALIZERS, SATURATION, NormTraits, measure
from un.surgery.probing import ALL, Probe, ProbeError, compare, find_axis
from un.surgery.recognition import list_extra_inputs, recognize_norm, walk_norms

MAX_VECTORS = 4  # of a norm whose parameters are to do nothing: all fillings with 1 and 0 are tried
SCALE_TOLERANCE = 1e-6  # relative, between a product and what a LayerScale makes, be it computed in float32


@dataclass(frozen=True)
class FoldSite:
    """A norm of the model, or a LayerScale, which is treated as a norm that is only a scale."""

    names: tuple[str, ...]  # dotted, several where the model holds one norm more than once
    norm: nn.Module
    scale: Tensor  # (C,), float64, of the map y = scale * x + shift that folding may move
    shift: Tensor
    offline: bool  # whether the map is all that the norm does at inference; otherwise it follows a part that stays
    channel_axis: int  # -1, 1 or -2
    obstacle: str = ""  # why nothing of this norm can be moved; empty where it can
    is_layer_scale: bool = False
    neutral: tuple[float, ...] | None = None  # not offline: where its vectors do nothing; None: they are taken out

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    def describe(self) -> str:
        """Returns class and channels, e.g. UnifiedNorm(192)."""
        inner = find_inner(self.norm)
        text = f"{type(inner).__name__}({len(self.scale)})"
        return text if inner is self.norm else f"ChannelFirst({text})"


def find_sites(model: nn.Module) -> list[FoldSite]:
    """Returns every norm over channels and LayerScale in module order; norms inside norms belong to the outer one."""
    found: list[tuple[tuple[str, ...], nn.Module, NormTraits | int]] = walk_norms(model, _recognize)
    return [_read_site(norm, names, traits) for names, norm, traits in found]


def _recognize(module: nn.Module) -> NormTraits | int | None:
    """Returns the traits of a norm, or the axis of a LayerScale."""
    traits = recognize_norm(module)
    return traits if traits is not None and traits.is_site else find_scaled_axis(module)


def find_scaled_axis(module: nn.Module) -> int | None:
    """Returns the axis (-1, 1 or -2) along which a module multiplies by one parameter per channel, and does no more.

    LayerScales have no class or attribute in common, so a copy of every module with one vector and nothing else is
    probed: with a random vector, only a plain multiplication gives the product.
    """
    vectors = list(module.parameters())
    if [vector.dim() for vector in vectors] != [1] or any(True for _ in (*module.buffers(), *module.children())):
        return None
    if list_extra_inputs(module):
        return None
    try:
        probe = Probe(module, torch.float64)
        probe.draw_parameters()
        vector = next(probe.module.parameters()).cpu()
        return find_axis(
            probe, len(vector), lambda x, y: torch.allclose(y, x * vector, SCALE_TOLERANCE, 0), "multiply", ALL
        )[0]
    except ProbeError:
        return None


def _read_site(norm: nn.Module, names: tuple[str, ...], traits: NormTraits | int) -> FoldSite:
    if isinstance(traits, int):
        factor = next(norm.parameters()).detach().double()
        return FoldSite(names, norm, factor, torch.zeros_like(factor), True, traits, is_layer_scale=True)
    inner, obstacle = find_inner(norm), traits.obstacle
    scale, shift = (
        torch.full((traits.num_features,), neutral, dtype=torch.float64) if value is None else value.detach().double()
        for value, neutral in ((traits.scale, 1.0), (traits.shift, 0.0))
    )
    if isinstance(inner, Norm):
        obstacle = obstacle or inner.describe_obstacle()
        plain: Any = None if obstacle else Probe(inner, torch.float64).module  # makes its weights plain
        affine = None if plain is None else plain.affine()
        if affine is not None:
            scale, shift = (value.detach().double() for value in affine)
        return FoldSite(names, norm, scale, shift, affine is not None, traits.axis, obstacle)
    if traits.rest:
        obstacle = f"applies {', '.join(type(part).__name__ for part in traits.rest)} to its result"
    neutral = None
    if not obstacle:
        try:
            scale, neutral = _separate(inner, traits.axis if inner is norm else -1, scale, shift)
        except ProbeError as error:
            obstacle = str(error)
    return FoldSite(names, norm, scale, shift, False, traits.axis, obstacle, neutral=neutral)


def _separate(norm: nn.Module, axis: int, scale: Tensor, shift: Tensor) -> tuple[Tensor, tuple[float, ...] | None]:
    """Returns the scale that can leave a norm, and the neutral values of its vectors; None: they are taken out.

    Raises:
        ProbeError: the norm does not work without its scale and shift.
    """
    found: list[tuple[float, Tensor, tuple[float, ...] | None]] = []
    count = len(_list_vectors(Probe(norm, torch.float64).module))
    fillings = itertools.product((1.0, 0.0), repeat=count) if 0 < count <= MAX_VECTORS else ()
    for neutral in (None, *fillings):
        bare = Probe(norm, torch.float64).module
        remove_affine(bare, neutral)
        try:
            remaining = measure(bare, len(scale), (*NORMALIZERS, SATURATION)).scale
            remaining = torch.ones_like(scale) if remaining is None else remaining
            whole, part = compare((norm, bare), len(scale), axis)
        except ProbeError:
            continue
        tolerance = FIT_TOLERANCE * float(whole.abs().max())
        if torch.allclose(whole, scale / remaining * part + shift, rtol=0, atol=tolerance):
            found.append((float((remaining - 1).abs().max()), scale / remaining, neutral))
            if found[-1][0] == 0:
                break
    if not found:
        raise ProbeError("does not work without its scale and shift")
    return min(found, key=lambda one: one[0])[1:]


def _list_vectors(norm: nn.Module) -> list[str]:
    """Returns the names of its parameters that are not scalars."""
    return [name for name, value in norm._parameters.items() if value is not None and value.numel() > 1]


def remove_affine(norm: nn.Module, neutral: tuple[float, ...] | None) -> None:
    """Takes weight and bias out of a norm that works without them, or sets its vectors to neutral values."""
    inner = find_inner(norm)
    make_plain(inner)
    if neutral is not None:
        for name, value in zip(_list_vectors(inner), neutral, strict=True):
            old = inner.get_parameter(name)
            new = nn.Parameter(torch.full_like(old, value), requires_grad=old.requires_grad)
            inner.register_parameter(name, new)  # others may hold the old one, too
        return
    for name in ("weight", "bias"):
        if name in inner._parameters:
            inner.register_parameter(name, None)
    if hasattr(inner, "elementwise_affine"):
        inner.elementwise_affine = False  # type: ignore[assignment]


def read_dtype(norm: nn.Module) -> torch.dtype:
    """Returns the type in which what is left of a norm should be stored: that of its statistics."""
    inner = find_inner(norm)
    tensors = [*inner.parameters(), *inner.buffers()]
    widest = max((t.dtype for t in tensors if t.is_floating_point()), key=lambda dtype: dtype.itemsize, default=None)
    return statistics_dtype(widest or torch.get_default_dtype())
