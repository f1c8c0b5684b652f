"""What keeps gradients right where a norm is compiled.

A training forward moves buffers on, and its backward needs values that were computed from them before. torch.compile
does not save such a value where it believes that computing it again is cheaper; it then reads the moved buffer and
returns wrong gradients without a word (torch 2.14, default settings, backends aot_eager and inductor).
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Values = TypeVar("Values")

# Operators of this package. `torch.library.custom_op` would do too, but a call takes three times as long.
LIBRARY = torch.library.Library("un", "DEF")
LIBRARY.define("hold(Tensor[] values) -> Tensor[]", tags=(torch.Tag.pt2_compliant_tag,))
LIBRARY.impl("hold", lambda values: [value.clone() for value in values], "CompositeExplicitAutograd")


def hold(values: Values) -> Values:
    """The same values, which under torch.compile are never computed a second time; in eager mode the values themselves.

    They pass through one operator that the compiler cannot look into, and such operators it does not run twice. At
    least one of the values must be needed by the forward's output, or the whole operator may move to the backward.

    Args:
        values: a tensor or any nest of tuples, named ones too, with tensors in it; constants to autograd.
    """
    if not torch.compiler.is_compiling():
        return values
    leaves, structure = pytree.tree_flatten(values)
    held = iter(torch.ops.un.hold([leaf for leaf in leaves if isinstance(leaf, Tensor)]))
    return pytree.tree_unflatten([next(held) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)
