"""Copies of models that `copy.deepcopy` alone refuses."""

from __future__ import annotations

import copy

import torch
from torch import nn

from un.surgery.probing import copy_computed


def copy_model(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Returns a copy in evaluation mode, in float64 if `dtype` says so and in the model's own types if it is None.

    Raises:
        ValueError: it cannot be copied.
    """
    try:
        copied = copy.deepcopy(model, {**copy_computed(model)}).eval()
    except Exception as error:  # any object that a model holds may refuse, each in its own way
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{type(model).__name__} cannot be copied, so it cannot be folded: {reason}") from error
    return copied if dtype is None else copied.double()
