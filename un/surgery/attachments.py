"""What is attached to a module from outside: hooks, and weights that torch computes from other tensors."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

CALL_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_backward_pre_hooks", "_backward_hooks"),
)
STATE_HOOKS = (
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
# Before every call these hooks of torch compute a weight and set it as a plain attribute.
WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
SOURCE_SUFFIXES = ("_g", "_v", "_u", "_orig", "_mask")  # what they name the tensors behind a weight


def carry_hooks(old: nn.Module, new: nn.Module) -> list[str]:
    """Gives the hooks of a module's calls to the one that takes its place; their handles go on working.

    Hooks that compute a weight, and those of state dicts, know only the old module: they stay with it.

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
    """Every weight that torch computes from other tensors: its name and what computes it, as (weight, _WeightNorm)."""
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
    values = {}
    if parametrize.is_parametrized(module):
        values = {name: getattr(module, name) for name in module.parametrizations}  # type: ignore[union-attr]
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module._modules["parametrizations"]
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, WEIGHT_HOOKS):
            del module._forward_pre_hooks[key]
            hook(module, ())
            name = _name_weight(hook)
            values[name] = vars(module).pop(name)
            for tensors in (module._parameters, module._buffers):
                for source in [f"{name}{suffix}" for suffix in SOURCE_SUFFIXES]:
                    tensors.pop(source, None)
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad))


def _name_weight(hook: WeightNorm | SpectralNorm | BasePruningMethod) -> str:
    return hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name
