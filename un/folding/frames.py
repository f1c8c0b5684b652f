"""Frames: what each channel of the folded model means, and what it takes to get there.

A channel with value x in the model holds h in the folded one, x = scale * h + shift.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from un.folding.graph import Padding

RELATIVE_TOLERANCE = 1e-11  # between frames that must be equal; both are products of the same float64 numbers
NOBODY = -1


class Form(Enum):
    """What becomes of a norm's map."""

    FORWARD = "into what reads it"
    BACKWARD = "into what feeds it"
    MULTIPLY = "only its shift leaves, a multiplication stays"
    KEEP = "stays as one multiplication and addition"


@dataclass(frozen=True)
class Fill:
    """Constants (C,) that a call of `F.pad` puts in instead of the model's one."""

    values: Tensor
    padding: Padding

    @property
    def is_plain(self) -> bool:
        """Whether they are what the model itself puts in."""
        return bool((self.values == self.padding.value).all())

    def lay_out(self) -> Tensor:
        """Returns the constants in the shape of one position."""
        shape = [1] * self.padding.num_dims
        shape[self.padding.axis] = -1
        return self.values.view(shape)


@dataclass
class Frames:
    """Frames of every code, each (number of codes,) in float64, and what follows from them."""

    scale: Tensor  # of x = scale * h + shift
    shift: Tensor
    row_scale: Tensor  # of h = row_scale * x + row_shift, for codes that come out of linear maps
    row_shift: Tensor
    owner: Tensor  # site whose norm made the frame, or NOBODY
    homeless: Tensor  # whether the shift is what a norm's shift became in a linear map that takes no bias
    residues: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # site -> scale and shift (C,) that stay
    fills: dict[tuple[str, int], Fill] = field(default_factory=dict)  # (module, number of the call of `F.pad`)
    conditions: dict[int, float] = field(default_factory=dict)  # site -> max|scale| / min|scale| passed to writers
    blamed: dict[int, str] = field(default_factory=dict)  # site -> why its form is impossible

    @classmethod
    def plain(cls, size: int) -> Frames:
        """Frames in which every h is x."""
        ones, zeros = torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        return cls(ones, zeros, ones.clone(), zeros.clone(), torch.full((size,), NOBODY), zeros.bool())

    def blame(self, codes: Tensor, reason: str) -> None:
        """Blames the norms that own the frames of codes.

        Raises:
            ArithmeticError: no norm owns any of them.
        """
        owners = set(torch.unique(self.owner[codes]).tolist()) - {NOBODY}
        if len(codes) and not owners:
            raise ArithmeticError(f"no norm can be kept to avoid this: {reason}")
        for site in owners:
            self.blamed.setdefault(site, reason)

    def is_plain(self, codes: Tensor) -> Tensor:
        """For each code, whether its h is x."""
        return (self.scale[codes] == 1) & (self.shift[codes] == 0)


def is_same(left: Tensor, right: Tensor) -> Tensor:
    """Element-wise equality to rounding."""
    return torch.isclose(left, right, rtol=RELATIVE_TOLERANCE, atol=0.0)
