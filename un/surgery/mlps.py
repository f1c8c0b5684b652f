"""Finds the MLPs of a model, for norms that also stand between the first layer of an MLP and its activation."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

# Names of the two layers: those of timm and fairseq, and of torch's own TransformerEncoderLayer.
LAYERS = (("fc1", "fc2"), ("linear1", "linear2"))


def goes_into_mlps(norm_factory: Any) -> bool:
    """Tells whether a class of norms, or a `functools.partial` of one, wants a place in every MLP, too."""
    while isinstance(norm_factory, partial):
        norm_factory = norm_factory.func
    return bool(getattr(norm_factory, "in_mlps", False))


def find_first_layers(model: nn.Module) -> tuple[dict[str, nn.Linear], list[str]]:
    """Returns the first layer of every MLP by its dotted name, and notes on gated MLPs, which have no such place.

    An MLP is a module that holds two Linear layers by the names of `LAYERS`, the second as wide as the first.

    Raises:
        ValueError: there is no MLP.
    """
    found, left = dict[str, nn.Linear](), list[str]()
    for name, module in model.named_modules():
        for names in LAYERS:
            first, second = (getattr(module, layer, None) for layer in names)
            if not isinstance(first, nn.Linear) or not isinstance(second, nn.Linear):
                continue
            place = f"{name}.{names[0]}" if name else names[0]
            if first.out_features == second.in_features:
                found[place] = first
            else:
                widths = f"{first.out_features} channels, of which {names[1]} takes {second.in_features}"
                left.append(f"{place} got no norm behind it: it gives {widths}, as in gated MLPs")
    if not found:
        wanted = " nor ".join(f"{first} and {second}" for first, second in LAYERS)
        none = f"{type(model).__name__} has no MLP to put a norm into: no module with Linear layers {wanted}"
        raise ValueError("; ".join([none, *left]))
    return found, left
