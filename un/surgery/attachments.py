"""Handles what surrounds the forward of a module: hooks, computed weights and fused kernels."""

from __future__ import annotations

from collections.abc import Set

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

CALL_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)
STATE_HOOKS = (
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
# Before every call these hooks of torch compute a weight and set it as a plain attribute.
WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
# Attribute -> off. At inference these fused kernels compute LayerNorm themselves, from weight, bias and eps of whatever
# is in its place: they would bypass another norm, and fail where there is none. They belong to
# nn.TransformerEncoderLayer, nn.TransformerEncoder and fairseq 0.12.2's encoder layer.
KERNEL_SWITCHES = {"activation_relu_or_gelu": 0, "use_nested_tensor": False, "can_use_fastpath": False}


def carry_hooks(old: nn.Module, new: nn.Module) -> list[str]:
    """Moves the hooks on a module's calls to the module that takes its place; their handles keep working.

    Hooks that compute a weight, and those of state dicts, belong to the old module alone and stay with it.

    Returns:
        What was carried and what was not, e.g. "forward hooks carried over".
    """
    changes = []
    for kind in CALL_HOOKS:
        hooks = getattr(old, kind)
        for key in [key for key, hook in hooks.items() if isinstance(hook, WEIGHT_HOOKS)]:
            del hooks[key]
        if hooks and kind.endswith("hooks"):
            changes.append(f"{kind.strip('_').replace('_', ' ')} carried over")
        hooks.update(getattr(new, kind))
        setattr(new, kind, hooks)  # the same dictionary: a handle removes its hook from the one it knows
    if old._is_full_backward_hook is not None:
        new._is_full_backward_hook = old._is_full_backward_hook
    dropped = [kind for kind in STATE_HOOKS if getattr(old, kind)]
    return [*changes, *(f"{kind.strip('_').replace('_', ' ')} dropped" for kind in dropped)]


def list_computed_weights(module: nn.Module) -> list[tuple[str, str]]:
    """Returns each weight that torch computes from other tensors and what computes it, as ("weight", "_WeightNorm")."""
    found = []
    if parametrize.is_parametrized(module):
        for name, parts in module.parametrizations.items():  # type: ignore[union-attr, operator]
            found.append((name, " and ".join(type(part).__name__ for part in parts)))
    hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WEIGHT_HOOKS)]
    return [*found, *((_name_weight(hook), type(hook).__name__) for hook in hooks)]


def make_plain(module: nn.Module) -> None:
    """Turns every weight that torch computes into a parameter with its present value, in place.

    `parametrize.remove_parametrizations` does not serve: it takes a property away from the class of the module, which
    a copy shares with the original.
    """
    if parametrize.is_parametrized(module):
        values = {name: getattr(module, name) for name in module.parametrizations}  # type: ignore[union-attr]
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module._modules["parametrizations"]
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad))
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, WEIGHT_HOOKS):
            del module._forward_pre_hooks[key]
            hook.remove(module)


def _name_weight(hook: WeightNorm | SpectralNorm | BasePruningMethod) -> str:
    return hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name


def avoid_fused_kernels(model: nn.Module, norms: Set[nn.Module]) -> list[tuple[str, str]]:
    """Switches off the fused kernels of every module that holds one of `norms`.

    Returns:
        For each change, where ("the model" or a dotted name) and what, e.g. "can_use_fastpath set to False".
    """
    changes = []
    for name, module in model.named_modules():
        for switch, off in KERNEL_SWITCHES.items():
            if getattr(module, switch, off) != off and not norms.isdisjoint(module.modules()):
                setattr(module, switch, off)
                changes.append((name or "the model", f"{switch} set to {off}"))
    return changes
