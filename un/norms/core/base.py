"""What every norm shares: parameters, input checks and buffers that never become half precision.

Shape letters, here and in the other files: B batch, N tokens, C channels, M window, R rows (leading axes flattened).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from un.norms.core.autograd import CallNotes
from un.norms.core.options import check_at_least

HALF_TYPES = (torch.float16, torch.bfloat16)
OWN_COUNTERS = ("nonfinite_counter", "update_calls")  # buffers that checkpoints of the official code lack
NEVER = 2**31 - 1  # the number of a place in the training that is not known yet, see `un.norms.core.schedule`


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

    # What a class declares of itself; buffers by their names.
    overwritten: tuple[str, ...] = ()  # those that a refused batch would change, see `un.norms.core.transaction`
    rejects_nonfinite = True  # whether a batch with a statistic that is not finite is refused
    gradient_state: tuple[str, ...] = ()  # those that a backward moves; in units of the upstream gradient
    running_moment = "running_var"  # the second moment that inference uses
    counts_padding = False  # whether padding is in the running moment
    filtration: bool | None = None  # of outliers, on or off; None where there is none
    average_window: Callable[[Tensor], Tensor]  # (M, C) to (C,), of a norm with a window of second moments
    in_mlps = False  # whether surgery also puts one between the first layer and the activation of every MLP
    is_final = False  # whether it is the last before the output layer; set by `un.surgery.mark_final_norms`
    shown: tuple[str, ...] = ()  # options in its repr()
    variant: Any = None  # the subclass for options that the class does not have itself; has `is_asked_for(options)`

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    shared_pad_mask: Tensor | None  # used where no mask is passed; set by `un.surgery.masking`
    count = "calls"  # what windows and warm-up count; set by `un.norms.core.updates`
    calls_per_step = 1  # counts after which the schedule moves on once
    fractions: dict[str, float]  # places in the training that are fractions of it, by their buffers' names
    places: dict[str, int]  # all places, as numbers on the host; set by `un.norms.core.schedule`
    update_calls: Tensor
    running_var: Tensor  # the names of the state are those of the official code
    ema_gz: Tensor
    buffer_x2: Tensor
    buffer_gz: Tensor
    iters: Tensor
    nonfinite_counter: Tensor
    skip_counter: Tensor

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Creates a norm of the class, or of its variant where the options ask for it."""
        variant = cls.variant
        if variant is None or issubclass(cls, variant) or not variant.is_asked_for(options):
            return super().__new__(cls)
        if not issubclass(variant, cls):
            raise ValueError(f"{cls.__name__} must derive from {variant.__name__} to have its options")
        return super().__new__(variant)

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
        self.batch_moments: Any = None  # Moments of the latest training call, where the norm takes batches in
        self._state_device, self._state_dtype = device, statistics_dtype(dtype or torch.get_default_dtype())
        self._initial_state: dict[str, float] = {}
        self.fractions, self.places = {}, {}
        self.notes = CallNotes()
        for name, fill, wanted in (("weight", torch.ones, affine), ("bias", torch.zeros, affine and bias)):
            value = nn.Parameter(fill(num_features, device=device, dtype=dtype)) if wanted else None
            self.register_parameter(name, value)

    def register_state(self, name: str, fill: float, *shape: int, integer: bool = False) -> None:
        """Registers a buffer that `reset_parameters` sets to `fill` and that stays at least float32."""
        dtype = torch.int64 if integer else self._state_dtype
        self.register_buffer(name, torch.full(shape, fill, device=self._state_device, dtype=dtype))
        self._initial_state[name] = fill

    def register_counters(self, *names: str) -> None:
        """Registers buffers (1,) that count from 0."""
        for name in names:
            self.register_state(name, 0, 1, integer=True)

    def reset_parameters(self) -> None:
        """Sets parameters and buffers to their initial values, e.g. after `to_empty` from the meta device."""
        for parameter, fill in ((self.weight, 1.0), (self.bias, 0.0)):
            if parameter is not None:
                nn.init.constant_(parameter, fill)
        for name, fill in self._initial_state.items():
            getattr(self, name).fill_(fill)
        self.read_places()

    def fix_places(self, length: float) -> None:
        """Turns fractions of a training of `length` steps into numbers; those that have one keep it."""
        for name, fraction in self.fractions.items():
            if self.places[name] == NEVER:
                self.get_buffer(name).fill_(round(fraction * length))
        self.read_places()

    def read_places(self) -> None:
        """Reads the places from the buffers that keep them, after these have changed."""
        for name in self.places:
            buffer = self.get_buffer(name)
            self.places[name] = self.places[name] if buffer.is_meta else int(buffer)

    @property
    def counts_steps(self) -> bool:
        """Tells whether there is a step counter, and so a warm-up."""
        return "iters" in self._buffers

    def reset_steps(self) -> None:
        """Enters warm-up anew, where there is one, and keeps all statistics (official advice before fine-tuning)."""
        if self.counts_steps:
            self.iters.zero_()
            for name in self.fractions:
                self.get_buffer(name).fill_(NEVER)
            self.read_places()

    @property
    def source(self) -> Norm:
        """The norm whose statistics this one uses at inference: itself, unless it holds another."""
        return self

    def read_running(self) -> tuple[Any, Any]:
        """Returns the running second moment and mean, (C,) each, that inference uses; None where there is none."""
        moment = self._buffers.get(self.running_moment)
        if moment is not None and moment.dim() > 1:
            moment = moment.view(-1)
        return moment, self._buffers.get("running_mean")

    def prepare(self, x: Tensor) -> Tensor:
        """Returns that of which the norm takes its statistics, for an input x (..., C)."""
        return x

    def penalty(self) -> Tensor | None:
        """Returns what the latest training forward adds to the loss, a scalar with gradient; None where it is nothing.

        A class may also compute it here. Tasks add the sum over the norms, see `un.norms.core.penalties`.
        """
        return self.notes.read_penalty() if self.training else None

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """Returns the inference map as (scale, shift), each (C,): y = scale * x + shift; None where there is none.

        With running statistics it is weight (x - mean) / sqrt(moment + eps) + bias, unless a class says otherwise.
        """
        moment, mean = self.read_running()
        return None if moment is None else self.combine_affine((moment + self.eps).rsqrt(), mean)

    def describe_obstacle(self) -> str:
        """Returns why nothing of the norm can be folded at present; empty where something can."""
        return ""

    def watch(self) -> dict[str, Tensor]:
        """Returns scalars worth logging during training, as tensors without axes on the norm's device.

        The fraction of calls filtered, the calls refused as non-finite, the mean ratio of window to running moment, and
        the training-inference discrepancy.
        """
        scalars = {}
        if "skip_counter" in self._buffers:
            scalars["filtered_fraction"] = (self.skip_counter / self.iters.clamp_min(1)).squeeze()
        if "nonfinite_counter" in self._buffers:
            scalars["nonfinite_count"] = self.nonfinite_counter.squeeze()
        if "buffer_x2" in self._buffers:
            smooth, (running, _) = self.average_window(self.buffer_x2), self.read_running()
            scalars["window_ratio"] = ((smooth + self.eps) / (running + self.eps)).mean()
        return scalars | self.measure_discrepancy()

    @torch.no_grad()
    def measure_discrepancy(self) -> dict[str, Tensor]:
        """Returns the training-inference discrepancy (TID) of the latest training call, as tensors without axes.

        How far the running statistics, which the call has moved already, are from those of its batch, in the batch's
        standard deviations and as the mean over channels (RBN, arXiv 2210.05153): |running mean - mean| / deviation,
        and |running deviation / deviation - 1|; without centring, roots of second moments take the place of deviations,
        and there is no mean. Ours: eps is inside the roots, as in the norm, so that a dead channel counts 0.
        """
        (running, running_mean), moments = self.read_running(), self.batch_moments
        if moments is None or running is None:
            return {}
        deviation = (moments.square.to(running) + self.eps).sqrt()
        found = {"scale_discrepancy": ((running + self.eps).sqrt() / deviation - 1).abs().mean()}
        if running_mean is not None:
            found["mean_discrepancy"] = ((running_mean - moments.mean.to(running)) / deviation).abs().mean()
        return found

    def apply_affine(self, x: Tensor) -> Tensor:
        """Applies the inference map to x (..., C) in statistics precision and returns x's type."""
        scale, shift = self.affine()  # type: ignore[misc]
        return torch.addcmul(shift, x, scale).to(x.dtype)

    def scale_and_shift(self, y: Tensor) -> Tensor:
        """Returns weight * y + bias for y (..., C); always a new tensor.

        An in-place operation behind the norm must change neither what the backward keeps of y nor what y is a view of.
        """
        y = y.clone() if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias

    def combine_affine(self, scale: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the map weight * scale * (x - mean) + bias as (scale, shift), each (C,)."""
        shift = torch.zeros_like(scale) if self.bias is None else self.bias
        if self.weight is not None:
            scale = scale * self.weight
        return scale, shift if mean is None else shift - mean * scale

    def copy_affine(self, weight: Tensor | None, bias: Tensor | None) -> None:
        """Copies the weight and bias of a norm that this one replaces, as far as it has them itself."""
        for own, value in ((self.weight, weight), (self.bias, bias)):
            if own is not None and value is not None:
                own.data.copy_(value)

    def read_affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Returns the weight and bias, (C,) each, that a norm in its place would need; None where it has none."""
        return self.weight, self.bias

    def check_input(self, x: Tensor, pad_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns x, contiguous as it is after nn.LayerNorm, and the mask to use: the one passed, or the shared one.

        Raises:
            ValueError: where x is not (..., C) or the mask is not a boolean (...), or in training where the norm was
                never told of how long a training its schedule is a fraction.
        """
        if x.dim() == 0 or x.shape[-1] != self.num_features:
            raise ValueError(f"expected input (..., {self.num_features}), got shape {tuple(x.shape)}")
        pad_mask = self.shared_pad_mask if pad_mask is None else pad_mask
        if pad_mask is not None and pad_mask.dtype != torch.bool:
            raise ValueError(f"pad_mask must be boolean (True = padding), got {pad_mask.dtype}")
        if pad_mask is not None and pad_mask.shape != x.shape[:-1]:
            raise ValueError(f"pad_mask must have shape {tuple(x.shape[:-1])}, got {tuple(pad_mask.shape)}")
        if self.training and NEVER in self.places.values():
            raise ValueError(
                f"{type(self).__name__} has a schedule in fractions of a training whose length it was not told: call "
                "un.norms.set_training_length(model, steps), or give it a number of steps"
            )
        return x.contiguous(), pad_mask

    def extra_repr(self) -> str:
        affine = "" if self.weight is not None else ", affine=False"
        return f"{self.num_features}, eps={self.eps}{affine}" + "".join(
            f", {name}={getattr(self, name)}" for name in self.shown
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Norm:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():  # a trip through half precision must not round the statistics
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype in HALF_TYPES and old.dtype not in HALF_TYPES:
                self._buffers[name] = old.to(new.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in (*OWN_COUNTERS, *self.fractions):
            if name in self._buffers:
                state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.read_places()


def flatten_rows(x: Tensor, pad_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Returns x (..., C) as rows (R, C), without gradient, and its mask (...) as (R,)."""
    return x.detach().view(-1, x.shape[-1]), None if pad_mask is None else pad_mask.reshape(-1)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns float64 for float64, and float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32
