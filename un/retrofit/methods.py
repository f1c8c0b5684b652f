"""The map that takes the place of a norm, and the norm that has it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from un.norms.channel_map import CenteredMap, ChannelMap
from un.norms.core.base import Norm
from un.retrofit.moments import PairMoments
from un.surgery import NormFactory
from un.surgery.measurement import NormTraits
from un.surgery.probing import compare

METHODS = ("least_squares", "scalar", "fake_layernorm", "statistics")
TOLERANCE = 1e-3  # relative, between the map that a norm is to have and has; parameters may be half precision
Map = tuple[Tensor, Tensor]  # scale and shift, (C,) each, float64


class Fit:
    """Fits the map of one norm by one method, from rows that are added batch by batch.

    Args:
        method: one of METHODS. "scalar" and "fake_layernorm" put the mean over rows of the root of variance plus eps in
            place of each row's own (arXiv 2409.13710); the first takes the mean over channels at its average, too, so
            that a map per channel is left (ours), the second still subtracts it. The others are least squares.
        norm: of the original model.
        traits: of that norm.
    """

    def __init__(self, method: str, norm: nn.Module, traits: NormTraits) -> None:
        self.method, self.traits = method, traits
        self.uses_rows = method in ("scalar", "fake_layernorm")
        self.subtracts_mean = self.uses_rows and _subtracts_mean(norm, traits)
        self.keeps_center = method == "fake_layernorm" and self.subtracts_mean
        eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", 0.0)) or 0.0
        measure = partial(_measure_deviation, eps=float(eps), subtracts_mean=self.subtracts_mean)
        self.moments = PairMoments(measure if self.uses_rows else None)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds inputs x and what the original norm gave, y, (R, C) each."""
        self.moments.add(x - x.mean(-1, keepdim=True) if self.keeps_center else x, y)

    def solve(self) -> Map:
        """Returns scale and shift, each (C,)."""
        if not self.uses_rows:
            return self.moments.solve()
        one = torch.ones_like(self.moments.x_mean)
        scale, shift = (
            (one * neutral if value is None else value.to(one))
            for value, neutral in ((self.traits.scale, 1.0), (self.traits.shift, 0.0))
        )
        scale = scale / self.moments.row_mean
        if self.subtracts_mean and not self.keeps_center:
            shift = shift - scale * self.moments.x_mean.mean()
        return scale, shift

    def build(self, norm_factory: NormFactory | None, num_features: int, **place: Any) -> Norm:
        """Returns a norm with the fitted map, in evaluation mode.

        Raises:
            ValueError: the factory's norm cannot have it.
        """
        scale, shift = self.solve()
        if self.keeps_center:
            norm = (norm_factory or CenteredMap)(num_features, **place)
            if not isinstance(norm, CenteredMap):
                kind = type(norm).__name__
                raise ValueError(f"method fake_layernorm leaves a linear map over channels, which a {kind} cannot be")
            return _set_parameters(norm, scale, shift).eval()
        norm = (norm_factory or ChannelMap)(num_features, **place)
        if not isinstance(norm, Norm) or norm.affine() is None:
            raise ValueError(
                f"norm_factory must build norms that are a fixed map at inference, not {type(norm).__name__}"
            )
        norm.copy_affine(self.traits.scale, self.traits.shift)
        return match_inference_map(norm.eval(), scale, shift, self.moments)


@torch.no_grad()
def match_inference_map(norm: Norm, scale: Tensor, shift: Tensor, moments: PairMoments) -> Norm:
    """Gives a norm the running statistics of some rows, and the weight and bias with which it is a given map.

    Args:
        norm: is changed in place; weight and bias enter its map linearly.
        scale: (C,).
        shift: (C,).
        moments: of its inputs.

    Raises:
        ValueError: the norm cannot be that map.
    """
    source = norm.source
    running_moment, running_mean = source.read_running()  # views of the buffers
    if running_moment is not None:
        centered = 0.0 if running_mean is not None else moments.x_mean.square()
        running_moment.copy_(moments.x_variance + centered)
    if running_mean is not None:
        running_mean.copy_(moments.x_mean)
    if source.weight is not None and source.bias is not None:
        zero, one = torch.zeros_like(scale), torch.ones_like(scale)
        base, unit = (_read_map(_set_parameters(source, weight, zero)) for weight in (zero, one))
        weight = (scale - base[0]) / (unit[0] - base[0])
        _set_parameters(source, weight, shift - base[1] - weight * (unit[1] - base[1]))
    found = _read_map(norm)
    for wanted, has in zip((scale, shift), found, strict=True):
        if not torch.allclose(has.to(wanted), wanted, rtol=TOLERANCE, atol=TOLERANCE * float(wanted.abs().max())):
            raise ValueError(f"{type(norm).__name__} cannot be the map that was fitted: it needs a weight and a bias")
    return norm


def _read_map(norm: Norm) -> Map:
    affine = norm.affine()
    assert affine is not None
    return affine[0].double(), affine[1].double()


def _set_parameters(norm: Norm, weight: Tensor, bias: Tensor) -> Norm:
    for parameter, value in ((norm.weight, weight), (norm.bias, bias)):
        if parameter is not None:
            parameter.data.copy_(value)
    return norm


def _measure_deviation(x: Tensor, eps: float, subtracts_mean: bool) -> Tensor:
    """Returns by how much a norm divides each row of x (R, C), as (R,)."""
    square = x.var(-1, correction=0) if subtracts_mean else x.square().mean(-1)
    return (square + eps).sqrt()


def _subtracts_mean(norm: nn.Module, traits: NormTraits) -> bool:
    """Whether a norm gives the same for rows that differ by a constant."""

    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    plain, shifted = compare((norm, nn.Sequential(Shifted(), norm)), traits.num_features, traits.axis)
    return torch.allclose(plain, shifted, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))
