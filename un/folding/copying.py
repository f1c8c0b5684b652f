"""Copies of models that `copy.deepcopy` alone refuses."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def copy_model(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy in evaluation mode, in float64 if `dtype` says so and in the model's own types if it is None.

    Tensors that a model keeps from an earlier forward, or computes its weights from anew in every forward, as pruning
    and weight_norm do, hang on a graph of gradients and are copied without it.

    Raises:
        ValueError: it cannot be copied.
    """
    memo: dict[int, Tensor] = {}
    for module in model.modules():
        for value in _list_values(vars(module)):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        copied = copy.deepcopy(model, memo).eval()
    except Exception as error:  # any object that a model holds may refuse, each in its own way
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{type(model).__name__} cannot be copied, so it cannot be folded: {reason}") from error
    return copied if dtype is None else copied.double()


def _list_values(container: object) -> list[object]:
    """The values in nested dictionaries, lists and tuples; modules are visited on their own."""
    if isinstance(container, dict):
        container = list(container.values())
    if isinstance(container, list | tuple):
        return [value for item in container for value in _list_values(item)]
    return [container]
