"""Hands padding masks to norms inside models that call them as `norm(x)`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from un.norms.core.base import Norm


@contextlib.contextmanager
def share_pad_mask(module: nn.Module, pad_mask: Tensor) -> Iterator[None]:
    """Lets every norm in `module` use `pad_mask` inside the `with` block, where it is called without a mask.

    Blocks may be nested; the inner one wins and gives way to the outer one at its end. A norm which activation
    checkpointing recomputes after the block uses the mask of its first call.

    Args:
        module: is searched for norms of `un.norms` at each entry, so that replaced norms are found; others ignore it.
        pad_mask: boolean, True = padding, of the shape of the norms' inputs without the last axis.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, Norm)]
    outer = [norm.shared_pad_mask for norm in norms]
    try:
        for norm in norms:
            norm.shared_pad_mask = pad_mask
        yield
    finally:
        for norm, mask in zip(norms, outer, strict=True):
            norm.shared_pad_mask = mask
