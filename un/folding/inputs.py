"""The example inputs of a fold: calling the model on them, on variants of them, and on nothing else."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

EMPTY = ", one of length 0"  # in the description of a tensor
PATCH = 16  # pixels, a multiple of the patches of most models, so that they take an image that is smaller by as much


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call of a model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, example_inputs: Any) -> Inputs:
        """Reads what a user gives: a tensor, a tuple of positional arguments or a mapping of keyword ones.

        Raises:
            ValueError: it is something else.
        """
        if isinstance(example_inputs, Mapping):
            return cls((), dict(example_inputs))
        if isinstance(example_inputs, Tensor):
            return cls((example_inputs,), {})
        if isinstance(example_inputs, tuple | list):
            return cls(tuple(example_inputs), {})
        raise ValueError(
            "example_inputs must be a tensor, a tuple of inputs or a mapping from names to inputs, got "
            f"{type(example_inputs).__name__}"
        )

    def cast(self, dtype: torch.dtype | None) -> Inputs:
        """Returns the call with its floating-point tensors cast; None leaves them as they are."""

        def cast_leaf(leaf: Any) -> Any:
            return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

        return self if dtype is None else Inputs(*tree_map(cast_leaf, (self.args, self.kwargs)))

    def run(self, model: nn.Module) -> Any:
        """Calls a model on copies, and returns the outputs that count.

        A tensor followed by dictionaries, as (logits, extra) of fairseq, counts with the tensor alone: the extras are a
        look inside, at hidden states that may be anything after folding.
        """

        def copy_leaf(leaf: Any) -> Any:
            return leaf.detach().clone() if isinstance(leaf, Tensor) else copy.deepcopy(leaf)

        args, kwargs = tree_map(copy_leaf, (self.args, self.kwargs))
        outputs = model(*args, **kwargs)
        if isinstance(outputs, tuple) and outputs and isinstance(outputs[0], Tensor):
            extras = [item for item in outputs[1:] if item is not None]
            if extras and all(isinstance(item, Mapping) for item in extras):
                return outputs[0]
        return outputs

    def list_variants(self) -> Iterator[Inputs]:
        """Yields calls that a model may take another way through its code for: other sizes and whole numbers.

        Every axis gets other lengths, alone and together with all that are as long as it is. The first axis of a tensor
        that has others is left as it is, as a rule a batch.
        """
        leaves, structure = tree_flatten((self.args, self.kwargs))
        sizes = {
            (number, axis): leaf.shape[axis]
            for number, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor)
            for axis in range(leaf.dim() > 1, leaf.dim())
        }
        alike = [tuple(place for place in sizes if sizes[place] == size) for size in sorted(set(sizes.values()))]
        changed: list[list[Any]] = []
        for places in dict.fromkeys((*alike, *((place,) for place in sizes))):
            size = sizes[places[0]]
            for length in sorted({1, size // 2, size - PATCH, size + 1} - {0, size}):
                if length > 0:
                    changed.append(list(leaves))
                    for number, axis in places:
                        changed[-1][number] = _resize(changed[-1][number], axis, length)
        if any(type(leaf) is int for leaf in leaves):
            changed.append([leaf + 1 if type(leaf) is int else leaf for leaf in leaves])
        for variant in changed:
            yield Inputs(*tree_unflatten(variant, structure))


def _resize(tensor: Tensor, axis: int, length: int) -> Tensor:
    """Cuts an axis, or repeats its last row."""
    size = tensor.shape[axis]
    if not size:
        return tensor.new_zeros([*tensor.shape[:axis], length, *tensor.shape[axis + 1 :]])
    return tensor.index_select(axis, torch.arange(length, device=tensor.device).clamp(max=size - 1))


class InputGuard:
    """A forward pre-hook of a folded model that refuses calls of another kind than the fold has seen.

    A mask where the example had none, another flag or an axis of length 0 may lead through code that was never
    followed. Values and other sizes of tensors are free.

    Args:
        kinds: of each argument, by name.
        positions: names of the positional arguments.
    """

    def __init__(self, kinds: Mapping[str, str], positions: tuple[str, ...]) -> None:
        self.kinds, self.positions = dict(kinds), tuple(positions)

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs) -> InputGuard:
        """Returns the guard for calls like an example's; arguments left out count with their defaults."""
        parameters = inspect.signature(model.forward).parameters.values()
        kinds = {p.name: _describe(p.default) for p in parameters if p.default is not p.empty}
        positions = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
        guard = cls(kinds, positions)
        guard.kinds |= guard._describe_call(inputs.args, inputs.kwargs)
        return guard

    def install(self, model: nn.Module) -> None:
        """Makes a folded model refuse other calls."""
        model.register_forward_pre_hook(self, with_kwargs=True)
        model.input_guard = self  # type: ignore[assignment]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Checks one call.

        Raises:
            ValueError: an argument is of another kind than on the example.
        """
        for name, kind in self._describe_call(args, kwargs).items():
            known = self.kinds.get(name, "left out")
            if kind not in (known, known.removesuffix(EMPTY)):
                raise ValueError(
                    f"this model was folded on an example whose {name} was {known}, not {kind}: fold it on an example "
                    "of that kind"
                )

    def _describe_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, str]:
        """Kinds of arguments by name; of those behind the named ones, as of `forward(*inputs)`, by number."""
        names = [*self.positions, *(f"input {number}" for number in range(len(self.positions), len(args)))]
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        return {name: _describe(value) for name, value in named.items()}


def _describe(value: Any) -> str:
    """Returns the kind of an argument: what may lead a model another way, but no values and no sizes except 0."""
    if isinstance(value, Tensor):
        number = "number" if value.is_floating_point() else "truth value" if value.dtype == torch.bool else "integer"
        return f"a tensor of {number}s with {value.dim()} axes{EMPTY if 0 in value.shape else ''}"
    return repr(value) if value is None or isinstance(value, bool | str) else f"of type {type(value).__name__}"
