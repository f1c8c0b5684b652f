"""torch.compile for what the norms of a model do in a training step, and for nothing else of it.

UN's step consists of small operations on (C,) vectors between four passes over the activations. On a GPU each is a
kernel to launch, which may take the host longer than the device needs for all of them; compiled they become a few.
Norms of equal shapes and options share one compilation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from un.norms.core.autograd import is_inside_backward, may_be_recomputed
from un.norms.core.base import Norm


def compile_norms(model: nn.Module, **options: Any) -> int:
    """Compiles the training step of every norm; names in checkpoints stay, and copies of the model are not compiled.

    Evaluation, calls that activation checkpointing may run again, and norms with hooks stay as they are.

    Args:
        model: with its norms in place.
        **options: of `torch.compile`.

    Returns:
        The number of norms.
    """
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    for norm in norms:
        norm._compiled_call_impl = partial(_call, norm, torch.compile(norm._call_impl, **options))
    return len(norms)


def _call(norm: Norm, compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    is_plain = norm.training and not (is_inside_backward() or may_be_recomputed())
    has_hooks = norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks
    return (compiled if is_plain and not has_hooks else norm._call_impl)(*args, **kwargs)
