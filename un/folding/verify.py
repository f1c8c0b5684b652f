"""Runs a model on example inputs and compares outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


def run_model(model: nn.Module, example_inputs: Any, dtype: torch.dtype | None = None) -> Any:
    """Calls a model on its inputs, floating-point ones cast to `dtype`, and returns the outputs that count.

    A tensor followed by dictionaries, as (logits, extra) of fairseq, counts with the tensor alone: the extras are a
    look inside, at hidden states that may be anything after folding.
    """

    def cast(leaf: Any) -> Any:
        floats = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.to(dtype) if floats and dtype is not None else leaf

    example_inputs = tree_map(cast, example_inputs)
    outputs = model(**example_inputs) if isinstance(example_inputs, Mapping) else model(*example_inputs)
    if isinstance(outputs, tuple) and outputs and isinstance(outputs[0], Tensor):
        extras = [item for item in outputs[1:] if item is not None]
        if extras and all(isinstance(item, Mapping) for item in extras):
            return outputs[0]
    return outputs


def list_tensors(outputs: Any) -> list[Tensor]:
    """The tensors of nested outputs.

    Raises:
        ValueError: there are none.
    """
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if not tensors:
        raise ValueError(f"the model must return tensors to be folded, got {type(outputs).__name__}")
    return tensors


def measure_difference(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Largest difference over the largest finite value, of the worst of several outputs; inf where kinds differ."""
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return float("inf")
    return max(_measure_one(left, right) for left, right in zip(expected, actual, strict=True))


def _measure_one(expected: Tensor, actual: Tensor) -> float:
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, actual) else float("inf")
    expected, actual = expected.double(), actual.double()
    finite = expected.isfinite()
    if not torch.equal(finite, actual.isfinite()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    largest = float(expected[finite].abs().max())
    difference = float((expected[finite] - actual[finite]).abs().max())
    return difference / largest if largest else difference
