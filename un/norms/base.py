"""What every norm shares: parameters, input checks and buffers that never become half precision.

Shape letters, here and in the other files: B batch, N tokens, C channels, M window, R rows (leading axes flattened).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from un.norms.derivatives import refuse_transforms
from un.norms.recomputation import CallNotes

HALF_TYPES = (torch.float16, torch.bfloat16)


class Norm(nn.Module):
    """Base of the norms: `norm(x, pad_mask=None)` with channel-last x (..., C).

    Args:
        num_features: C.
        eps: added inside the square root.
        affine: whether there is a learnable weight (and bias).
        bias: whether there is a bias beside the weight.
        device: where parameters and buffers are created.
        dtype: of the parameters; buffers have it too unless it is half precision, then they are float32.

    Raises:
        ValueError: for num_features < 1 or a negative eps.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    optional_state: tuple[str, ...] = ()  # buffers that checkpoints of the official code lack
    shared_pad_mask: Tensor | None  # used where no mask is passed; set by `un.norms.masking`
    count = "calls"  # what windows and warm-up count; set by `un.norms.updates`
    update_calls: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        eps: float,
        affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        check_at_least("eps", eps, 0)
        self.num_features = num_features
        self.eps = eps
        self.shared_pad_mask = None  # here, not in the class: an attribute that appears later is compiled anew
        self._state_device, self._state_dtype = device, statistics_dtype(dtype or torch.get_default_dtype())
        self._initial_state: dict[str, float] = {}
        self.notes = CallNotes()
        for name, fill, wanted in (("weight", torch.ones, affine), ("bias", torch.zeros, affine and bias)):
            value = nn.Parameter(fill(num_features, device=device, dtype=dtype)) if wanted else None
            self.register_parameter(name, value)

    def register_state(self, name: str, fill: float, *shape: int, integer: bool = False) -> None:
        """Registers a buffer that `reset_parameters` sets to `fill` and that stays at least float32."""
        dtype = torch.int64 if integer else self._state_dtype
        self.register_buffer(name, torch.full(shape, fill, device=self._state_device, dtype=dtype))
        self._initial_state[name] = fill

    def reset_parameters(self) -> None:
        """Sets parameters and buffers to their initial values, e.g. after `to_empty` from the meta device."""
        for value, fill in ((self.weight, 1.0), (self.bias, 0.0)):
            if value is not None:
                nn.init.constant_(value, fill)
        for name, fill in self._initial_state.items():
            getattr(self, name).fill_(fill)

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """The inference map as (scale, shift), each (C,): y = scale * x + shift; None where the norm is not offline."""
        return None

    def watch(self) -> dict[str, Tensor]:
        """Scalars worth logging during training, as tensors without axes on the norm's device."""
        return {}

    def apply_affine(self, x: Tensor) -> Tensor:
        """Applies the inference map to x (..., C) in statistics precision and returns x's type."""
        scale, shift = self.affine()  # type: ignore[misc]
        return torch.addcmul(shift, x, scale).to(x.dtype)

    def combine_affine(self, scale: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The map weight * scale * (x - mean) + bias as (scale, shift), each (C,)."""
        shift = torch.zeros_like(scale) if self.bias is None else self.bias
        if self.weight is not None:
            scale = scale * self.weight
        return scale, shift if mean is None else shift - mean * scale

    def copy_affine(self, weight: Tensor | None, bias: Tensor | None) -> None:
        """Copies the weight and bias of a norm that this one replaces, as far as it has them itself."""
        for own, value in ((self.weight, weight), (self.bias, bias)):
            if own is not None and value is not None:
                own.data.copy_(value)

    def check_input(self, x: Tensor, pad_mask: Tensor | None) -> Tensor | None:
        """The mask to use: the one passed, or else the shared one.

        Raises:
            ValueError: where x is not (..., C) or the mask is not a boolean (...).
            RuntimeError: see `refuse_transforms`.
        """
        if x.dim() == 0 or x.shape[-1] != self.num_features:
            raise ValueError(f"expected input (..., {self.num_features}), got shape {tuple(x.shape)}")
        if self.training and self._buffers:
            refuse_transforms(x, self.weight, self.bias)
        if pad_mask is None:
            pad_mask = self.shared_pad_mask
        if pad_mask is None:
            return None
        if pad_mask.dtype != torch.bool:
            raise ValueError(f"pad_mask must be boolean (True = padding), got {pad_mask.dtype}")
        if pad_mask.shape != x.shape[:-1]:
            raise ValueError(f"pad_mask must have shape {tuple(x.shape[:-1])}, got {tuple(pad_mask.shape)}")
        return pad_mask

    def extra_repr(self) -> str:
        """Channels, eps and whether weight and bias are there; subclasses add theirs."""
        affine = "" if self.weight is not None else ", affine=False"
        return f"{self.num_features}, eps={self.eps}{affine}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Norm:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():  # a trip through half precision must not round the statistics
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype in HALF_TYPES and old.dtype not in HALF_TYPES:
                self._buffers[name] = old.to(new.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self.optional_state:
            if name in self._buffers:
                state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *args)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raises a ValueError naming the option, the value and what is allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value}")


def check_flags(**values: object) -> None:
    """Raises a ValueError where a value is not true or false."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value}")


def is_number(value: object) -> bool:
    """Whether a value is an int or a float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_at_least(name: str, value: float, least: float) -> None:
    """Raises a ValueError where value is no number or < least; NaN is no number."""
    if not is_number(value) or not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_fraction(name: str, value: float) -> None:
    """Raises a ValueError where value is no number or outside [0, 1]."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")


def make_pair(name: str, value: Any, *, whole: bool = False) -> tuple[Any, Any]:
    """A (forward, backward) pair from one number or from two.

    Raises:
        ValueError: for anything but a number or two of them, or one that is not whole where `whole` is asked for.
    """
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(pair) != 2 or not all(map(is_number, pair)):
        raise ValueError(f"{name} must be a number or a (forward, backward) pair, got {value}")
    if whole and not all(isinstance(v, int) for v in pair):
        raise ValueError(f"{name} must be a whole number or two, got {value}")
    return pair
