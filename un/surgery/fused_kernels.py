"""Switches off the fused kernels that compute LayerNorm themselves, from weight, bias and eps of what is in its place.

They belong to nn.TransformerEncoderLayer, its nn.TransformerEncoder, and fairseq 0.12.2's encoder layer, and would pass
by another norm, or fail where there is none, at inference only.
"""

from __future__ import annotations

from collections.abc import Set

from torch import nn

SWITCHES = {"activation_relu_or_gelu": 0, "use_nested_tensor": False, "can_use_fastpath": False}  # attribute -> off


def avoid_fused_kernels(model: nn.Module, norms: Set[nn.Module]) -> list[tuple[str, str]]:
    """Sets every switch of a module that holds one of `norms`.

    Returns:
        For each change, where ("the model" or a dotted name) and what, e.g. "can_use_fastpath set to False".
    """
    changes = []
    for name, module in model.named_modules():
        for switch, off in SWITCHES.items():
            if getattr(module, switch, off) != off and not norms.isdisjoint(module.modules()):
                setattr(module, switch, off)
                changes.append((name or "the model", f"{switch} set to {off}"))
    return changes
