"""Measures a norm: where its channels are, and by what it multiplies and what it adds after normalising."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from un.surgery.probing import NO_CHILDREN, TYPES, Probe, ProbeError, find_axis

Normalizer = Callable[[Tensor], Tensor]

# Relative errors. A norm that computes in float32 inside is right to 1e-6, one that does something else wrong by 0.1.
FIT_TOLERANCE = 1e-4
EXACT_TOLERANCE = 1e-9


def _center(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _divide(x: Tensor, rows: Tensor) -> Tensor:
    """Divides by the root mean square of rows, where that is not 0."""
    return x * rows.square().mean(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny).rsqrt()


# What norms over the last axis make of a row before they multiply and add.
NORMALIZERS: tuple[Normalizer, ...] = (
    lambda x: _divide(_center(x), _center(x)),  # LayerNorm
    lambda x: _divide(x, x),  # RMSNorm
    lambda x: _divide(x, _center(x)),  # timm's SimpleNorm
)
SATURATION: Normalizer = torch.sign  # what Dynamic Tanh and its like make of rows as large as those of a probe


@dataclass(frozen=True)
class Measurement:
    """A norm y = scale * normalised x + shift.

    Attributes:
        axis: of the channels: -1, 1 or -2.
        scale: (C,), float64, relative to rows of unit variance, or of unit mean square where nothing is centred; None
            where it is 1 and the norm has no weight.
        shift: (C,), float64; None where it is 0 and the norm has no bias.
        has_affine: whether the norm has parameters.
    """

    axis: int
    scale: Tensor | None
    shift: Tensor | None
    has_affine: bool


def measure(
    module: nn.Module,
    num_channels: int,
    normalizers: Sequence[Normalizer] = NORMALIZERS,
    children: Mapping[str, nn.Module] = NO_CHILDREN,
) -> Measurement:
    """Measures a norm over channels.

    A copy with random parameters is asked first, because those of the moment may hide a part of what it does.

    Args:
        module: anything; it is left as it is. On the meta device scale and shift are not known and are None.
        num_channels: C.
        normalizers: what may happen to a row before scale and shift.
        children: stand under these names while it is measured.

    Raises:
        ProbeError: it is no such norm, or does not answer.
    """
    for dtype in TYPES:
        try:
            drawn, actual = Probe(module, dtype, children), Probe(module, dtype, children)
            return _measure(drawn, actual, num_channels, normalizers)
        except ProbeError as error:
            if error.is_other or dtype is TYPES[-1]:
                raise
    raise AssertionError("unreachable")


def _measure(drawn: Probe, actual: Probe, num_channels: int, normalizers: Sequence[Normalizer]) -> Measurement:
    drawn.draw_parameters()

    def explains(x: Tensor, y: Tensor) -> bool:
        return bool(y.any()) and any(_fit(normalize(x), y) is not None for normalize in normalizers)

    axis, x = find_axis(drawn, num_channels, explains, "normalise over channels, each position by itself")
    parameters = list(actual.module.parameters(recurse=False))
    has_affine = bool(parameters)
    weight, bias = (_read(actual.module, name, num_channels) for name in ("weight", "bias"))
    if actual.is_empty:
        return Measurement(axis, None, None, has_affine)
    if not all(bool(parameter.isfinite().all()) for parameter in parameters):
        return Measurement(axis, weight, bias, has_affine)  # memory that is still to be filled, or a diverged model
    answers = [y.movedim(axis, -1) for y in (drawn.call(x), actual.call(x)) if y is not None]
    for normalize in normalizers:
        normalized = normalize(x.movedim(axis, -1))
        fits = [fit for fit in (_fit(normalized, y) for y in answers) if fit is not None]
        if len(fits) == 2:
            # Without parameters, a factor may tell one estimate of the variance from another: they differ by 1 / (2 C).
            tolerance = max(EXACT_TOLERANCE, 10 * fits[1].error) if has_affine else 1 / num_channels
            return Measurement(axis, *_settle(fits[1], weight, bias, tolerance), has_affine)
    raise ProbeError("does with its present parameters something else than with others", is_other=True)


@dataclass(frozen=True)
class _Fit:
    """y = scale * n + shift for rows n and y (R, C): both (C,), the largest relative error, max|n| and max|y| (C,)."""

    scale: Tensor
    shift: Tensor
    error: float
    spread: Tensor
    largest: Tensor


def _fit(normalized: Tensor, y: Tensor) -> _Fit | None:
    """Explains y by scale and shift of normalised rows, both (..., C); None where that fails.

    Every row comes with its negative: the shift is a mean, the scale a regression.
    """
    normalized, y = normalized.flatten(0, -2), y.flatten(0, -2)
    shift = y.mean(0)
    power = normalized.square().mean(0)
    scale = torch.where(power > 0, (normalized * y).mean(0) / power, 0.0)
    largest = y.abs().amax(0)
    error = (y - scale * normalized - shift).abs()
    if not bool((error <= FIT_TOLERANCE * largest).all()):  # nor where anything is not finite
        return None
    relative = float((error / largest.clamp(min=torch.finfo(y.dtype).tiny)).max())
    return _Fit(scale, shift, relative, normalized.abs().amax(0), largest)


def _settle(
    fit: _Fit, weight: Tensor | None, bias: Tensor | None, tolerance: float
) -> tuple[Tensor | None, Tensor | None]:
    """Scale and shift: weight and bias, which have no rounding of a measurement, where they are what was measured."""
    limit = tolerance * fit.largest
    by_weight = (fit.scale - (1.0 if weight is None else weight)).abs() * fit.spread <= limit
    by_bias = (fit.shift - (0.0 if bias is None else bias)).abs() <= limit
    return weight if bool(by_weight.all()) else fit.scale, bias if bool(by_bias.all()) else fit.shift


def _read(module: nn.Module, name: str, num_channels: int) -> Tensor | None:
    """A parameter as (C,) in float64; None where there is none of that size."""
    value = getattr(module, name, None)
    if not isinstance(value, Tensor) or value.numel() != num_channels:
        return None
    return value.detach().cpu().double().flatten()
