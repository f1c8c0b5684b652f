"""Small constant tensors, made once per device: at (C,) size an allocation costs as much as the arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

_CACHE: dict[Hashable, Tensor] = {}


def get_constant(key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """The tensor that `make` returned for this key before, or a new one.

    Callers only read it. Traced tensors (torch.compile, fake mode) are never kept.
    """
    if torch.compiler.is_compiling():
        return make()
    value = _CACHE.get(key)
    if value is None:
        value = make()
        if type(value) is Tensor and not value.is_inference():
            _CACHE[key] = value
    return value


def get_zeros(like: Tensor) -> Tensor:
    """Zeros (C,) with the last axis, device and type of `like`."""
    size = like.shape[-1]
    key = (size, like.device, like.dtype)
    return get_constant(key, lambda: torch.zeros(size, device=like.device, dtype=like.dtype))
