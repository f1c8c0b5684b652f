"""Gives a new norm the scale and shift of the one it replaces."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from un.norms.core.base import Norm
from un.surgery.recognition import NormTraits, recognize_norm


def carry_affine(traits: NormTraits, new: nn.Module) -> None:
    """Copies scale and shift into weight and bias of a new norm, and makes sure that there they do the same.

    Args:
        traits: of the old norm.
        new: over the last axis.

    Raises:
        ValueError: what cannot be carried, as the end of a sentence.
    """
    for name, value, neutral in (("weight", traits.scale, 1.0), ("bias", traits.shift, 0.0)):
        target = getattr(new, name, None)
        if value is None or value.is_meta:
            continue
        if target is not None:
            with torch.no_grad():
                target.copy_(value)
            if not torch.equal(getattr(new, name), value.to(target)):  # it is computed from other tensors
                raise ValueError(f"{type(new).__name__} does not keep the {name} that it is given")
        elif bool((value != neutral).any()):
            raise ValueError(
                f"{type(new).__name__} has no {name} to take the {name} of what it replaces, which is not {neutral:g} "
                "everywhere"
            )
    measured = None if isinstance(new, Norm) else recognize_norm(new)
    if measured is not None and not measured.obstacle:
        _check_same(new, "weight", measured.scale)
        _check_same(new, "bias", measured.shift)


def _check_same(norm: nn.Module, name: str, measured: Tensor | None) -> None:
    """Raises where what a norm does is not what its parameter says, as in one that scales by weight + 1."""
    value = getattr(norm, name, None)
    if value is None or measured is None:
        return
    # Estimates of the variance, biased or not, make scales that differ by less than 1 / C.
    if not torch.allclose(measured, value.detach().cpu().double().flatten(), rtol=1 / len(measured)):
        raise ValueError(f"the {name} of {type(norm).__name__} is not what it multiplies by or adds")
