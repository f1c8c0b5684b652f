"""Compares a folded model with the one it was made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from un.folding.inputs import Inputs

SENSITIVITY = 1e-6  # relative change by noise of order 1 on every norm, below which outputs count as constant; ours


def list_tensors(outputs: Any) -> list[Tensor]:
    """Returns the tensors of nested outputs.

    Raises:
        ValueError: there are none.
    """
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if not tensors:
        raise ValueError(f"the model must return tensors to be folded, got {type(outputs).__name__}")
    return tensors


def measure_difference(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Returns the largest difference over the largest finite value, of the worst output; inf where kinds differ."""
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


def measure_inside(
    original: nn.Module,
    folded: nn.Module,
    inputs: Inputs,
    norms: Sequence[str],
    changed: Collection[str],
) -> float:
    """Returns the difference of the outputs, or, where they do not depend on the norms, of the last module that does.

    A head that is still zero returns the same for every input, and so proves nothing about the layers before it.

    Args:
        original: a copy of the model that may be used up.
        folded: a copy of the folded model, likewise.
        inputs: the example.
        norms: names of the norms of which something has moved.
        changed: names of the modules that are meant to give other values in the folded model.

    Raises:
        ArithmeticError: there are such norms, and nothing that can be compared depends on them.
    """
    expected = list_tensors(inputs.run(original))
    difference = measure_difference(expected, list_tensors(inputs.run(folded)))
    if not norms:
        return difference
    hooks = [original.get_submodule(norm).register_forward_hook(_add_noise) for norm in norms]
    if measure_difference(expected, list_tensors(inputs.run(original))) > SENSITIVITY:
        return difference
    disturbed = _record_outputs(original, inputs)
    for hook in hooks:
        hook.remove()
    left, right = (_record_outputs(model, inputs) for model in (original, folded))
    for name, output in reversed(left.items()):
        depends = measure_difference([output], [disturbed.get(name, output)]) > SENSITIVITY
        if depends and name not in changed and name in right:
            return measure_difference([output], [right[name]])
    raise ArithmeticError(
        "no output that could be compared depends on the norms on the example inputs, so nothing shows that the fold "
        "is right: give other inputs, or fold the trained model if this one still has zeros for weights"
    )


def _record_outputs(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Returns the last tensor that each module gives, in the order in which the modules end."""
    outputs: dict[str, Tensor] = {}

    def make_hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                outputs.pop(name, None)
                outputs[name] = out.detach().clone()

        return keep

    hooks = [module.register_forward_hook(make_hook(name)) for name, module in model.named_modules() if name]
    inputs.run(model)
    for hook in hooks:
        hook.remove()
    return outputs


def _add_noise(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    generator = torch.Generator(out.device).manual_seed(0)
    return out + torch.randn(out.shape, generator=generator, device=out.device).to(out.dtype)
