"""Measures a norm: where its channels are, and by what it multiplies and what it adds after normalising."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from un.surgery.probing import NO_CHILDREN, Probe, ProbeError, find_axis

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
class NormTraits:
    """What a norm does: y = scale * normalised x + shift.

    Attributes:
        num_features: C, or how many values the norm takes together; 0 where it is not known.
        axis: of the channels: -1, 1 or -2.
        scale: (C,), float64, relative to rows of unit variance, or of unit mean square where nothing is centred; None
            where it is 1 and the norm has no weight, or where values are not known, as on the meta device.
        shift: (C,), float64; None where it is 0 and the norm has no bias, or where values are not known.
        has_affine: whether the norm has parameters.
        rest: modules of its own that it applies to the result, as timm's norms with an activation do.
        obstacle: why it is not understood, as the end of a sentence; empty where it is.
        is_claimed: whether the module's class says that it is a norm, so that an obstacle is an error.
    """

    num_features: int
    axis: int = -1
    scale: Tensor | None = None
    shift: Tensor | None = None
    has_affine: bool = True
    rest: tuple[nn.Module, ...] = ()
    obstacle: str = ""
    is_claimed: bool = True

    @property
    def is_site(self) -> bool:
        """Whether the module is a norm; otherwise it only looks like one."""
        return self.is_claimed or not self.obstacle


def measure(
    module: nn.Module,
    num_channels: int,
    normalizers: Sequence[Normalizer] = NORMALIZERS,
    children: Mapping[str, nn.Module] = NO_CHILDREN,
) -> NormTraits:
    """Measures a norm over channels: its axis, scale and shift.

    A copy with random parameters is probed first, because the present ones may hide part of what it does.

    Args:
        module: anything; it is left as it is.
        num_channels: C.
        normalizers: what may happen to a row before scale and shift.
        children: stand under these names while it is measured.

    Raises:
        ProbeError: it is not such a norm, or cannot be measured.
    """
    try:
        return _measure(module, torch.float64, num_channels, normalizers, children)
    except ProbeError as error:
        if error.is_other:
            raise
    return _measure(module, torch.float32, num_channels, normalizers, children)  # its own constants may be float32


def _measure(
    module: nn.Module,
    dtype: torch.dtype,
    num_channels: int,
    normalizers: Sequence[Normalizer],
    children: Mapping[str, nn.Module],
) -> NormTraits:
    drawn, actual = Probe(module, dtype, children), Probe(module, dtype, children)
    drawn.draw_parameters()

    def explains(x: Tensor, y: Tensor) -> bool:
        return bool(y.any()) and any(_fit(normalize(x), y) is not None for normalize in normalizers)

    axis, x = find_axis(drawn, num_channels, explains, "normalise over channels, each position by itself")
    parameters = list(actual.module.parameters(recurse=False))
    traits = NormTraits(num_channels, axis, has_affine=bool(parameters))
    if actual.is_empty:
        return traits
    weight, bias = (_read(actual.module, name, num_channels) for name in ("weight", "bias"))
    if not all(bool(parameter.isfinite().all()) for parameter in parameters):  # not filled yet, or a diverged model
        return dataclasses.replace(traits, scale=weight, shift=bias)
    answers = [y.movedim(axis, -1).flatten(0, -2) for y in (drawn.call(x), actual.call(x)) if y is not None]
    for normalize in normalizers:
        normalized = normalize(x.movedim(axis, -1)).flatten(0, -2)
        fits = [fit for fit in (_fit(normalized, y) for y in answers) if fit is not None]
        if len(fits) == 2:
            scale, shift, error = fits[1]
            # Without parameters, a factor may tell one estimate of the variance from another: they differ by 1 / (2 C).
            tolerance = max(EXACT_TOLERANCE, 10 * error) if parameters else 1 / num_channels
            # Stored values have no rounding of a measurement.
            keeps_weight = _measure_error(normalized, answers[1], weight, shift) <= tolerance
            keeps_bias = _measure_error(normalized, answers[1], scale, bias) <= tolerance
            return dataclasses.replace(
                traits, scale=weight if keeps_weight else scale, shift=bias if keeps_bias else shift
            )
    raise ProbeError("does something else with its present parameters than with random ones", is_other=True)


def _fit(normalized: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float] | None:
    """Explains y by scale and shift (C,) of normalised rows, both (..., C); None where that fails.

    Every row comes with its negative: the shift is a mean, the scale a regression.

    Returns:
        Scale, shift and the relative error.
    """
    normalized, y = normalized.flatten(0, -2), y.flatten(0, -2)
    shift, power = y.mean(0), normalized.square().mean(0)
    scale = torch.where(power > 0, (normalized * y).mean(0) / power, 0.0)
    error = _measure_error(normalized, y, scale, shift)
    return (scale, shift, error) if error <= FIT_TOLERANCE else None  # nor where anything is not finite


def _measure_error(normalized: Tensor, y: Tensor, scale: Tensor | None, shift: Tensor | None) -> float:
    """Returns the largest error of scale * normalized + shift, (R, C), over each channel's largest |y|."""
    expected = normalized if scale is None else scale * normalized
    expected = expected if shift is None else expected + shift
    largest = y.abs().amax(0).clamp(min=torch.finfo(y.dtype).tiny)
    return float(((y - expected).abs() / largest).max())


def _read(module: nn.Module, name: str, num_channels: int) -> Tensor | None:
    """Returns a parameter as (C,) in float64; None where there is none of that size."""
    value = getattr(module, name, None)
    if not isinstance(value, Tensor) or value.numel() != num_channels:
        return None
    return value.detach().cpu().double().flatten()
