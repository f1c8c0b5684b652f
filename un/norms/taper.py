"""TaperNorm: a norm of each row that ends as a fixed map per channel (arXiv 2602.10408).

    training    y = g N(x) + (1 - g) S(x),  S(x) = c γ̃ x + β̃
    N           γ x / sqrt(mean over C of x² + ε), or LayerNorm with γ and β
    gate        g = 1 for k_w steps, then ½ (1 + cos(π (k - k_w) / (k_t - k_w))) until step k_t, then 0
    at k_w      c = mean of <N(x), γ x> / mean of |γ x|², γ̃ ← γ, β̃ ← β; c stays, γ̃ and β̃ are trained on
    inference   with the gate of the training so far; from k_t on a = c γ̃, e = β̃, which folds into a linear layer

For the RMSNorm form c is the published ratio, E[|γ x|² / r] over E[|γ x|²]. Its analogue for LayerNorm (without β), k_w
and k_t as fractions of the training and the weight of the anchor were not to be seen, and are ours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from un.norms.core.base import Norm, flatten_rows, statistics_dtype
from un.norms.core.moments import divide, is_distributed, sum_over_processes
from un.norms.core.options import check_at_least, check_choice, check_flags, check_fraction
from un.norms.core.passes import reduce_products
from un.norms.core.schedule import choose_unit, register_place
from un.norms.core.transaction import advance_steps, find_nonfinite
from un.norms.core.updates import register_count

DEFAULT_START, DEFAULT_END = 0.3, 0.8  # k_w and k_t, of the training; ours
# Weight of the anchor; ours, that of the auxiliary loss with which "FakeLN" (arXiv 2409.13710) holds the same size.
DEFAULT_ANCHOR = 0.1


class Call(NamedTuple):
    """What a training call decides, each without axes."""

    gate: Tensor
    scale: Tensor  # c
    size: Tensor  # s*
    anchored: Tensor  # 1 where the anchor holds, else 0


class TaperNorm(Norm):
    """RMSNorm or LayerNorm that gives way to a fixed map during training.

    Buffers: running_products (3,), the means of <N(x), γ x>, |γ x|² and, for the anchor, of a row's size; fixed_scale
    c (); taper_start and taper_end (), iters (1,), nonfinite_counter (1,). Parameters besides weight and bias:
    fixed_weight γ̃ and fixed_bias β̃ (C,), which have no gradient before k_w.

    The last norm before the output layer holds the scale of the logits. As published, either it is not replaced
    ("internal", `configs/norm/tapernorm.yaml`), or ("all") it pays a penalty where it is marked as final, see
    `un.surgery.mark_final_norms`: anchor_weight times the mean over rows of (s - s*)², after k_w, with the size s of a
    row (root mean square, or standard deviation) and its mean s* until k_w.

    Args:
        num_features: C.
        base: N, `rmsnorm` (as published; no bias) or `layernorm`.
        start_steps, start_fraction: k_w, as calls or as a fraction of the training; 0.3 unless given.
        end_steps, end_fraction: k_t likewise; 0.8 unless given.
        momentum: weight of the OLD value in the running means, of which the first calls are the plain mean.
        anchor_weight: λ of the penalty of a final norm.
        sync: sum the products over processes.
        count: `calls` of this layer or optimizer `updates` for the schedule.
        eps, affine, device, dtype: as of `Norm`.

    Raises:
        ValueError: for a taper that ends before it begins, as far as both are numbers or both are fractions.
    """

    shown = ("base",)

    running_products: Tensor
    fixed_scale: Tensor
    taper_start: Tensor
    taper_end: Tensor
    fixed_weight: nn.Parameter | None
    fixed_bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        *,
        base: str = "rmsnorm",
        start_steps: int | None = None,
        start_fraction: float | None = None,
        end_steps: int | None = None,
        end_fraction: float | None = None,
        momentum: float = 0.99,
        anchor_weight: float = DEFAULT_ANCHOR,
        eps: float = 1e-5,
        affine: bool = True,
        sync: bool = False,
        count: str = "calls",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_choice("base", base, ("rmsnorm", "layernorm"))
        super().__init__(num_features, eps=eps, affine=affine, bias=base == "layernorm", device=device, dtype=dtype)
        check_fraction("momentum", momentum)
        check_at_least("anchor_weight", anchor_weight, 0)
        check_flags(sync=sync)
        self.base, self.momentum, self.anchor_weight, self.sync = base, momentum, anchor_weight, sync
        start = choose_unit("start", start_steps, start_fraction, DEFAULT_START)
        end = choose_unit("end", end_steps, end_fraction, DEFAULT_END)
        if type(start) is type(end) and end < start:
            raise ValueError(f"the taper must not end before it begins: it ends at {end} and begins at {start}")
        register_place(self, "taper_start", start)
        register_place(self, "taper_end", end)
        self.register_state("running_products", 0, 3)
        self.register_state("fixed_scale", 1)
        self.register_counters("iters", "nonfinite_counter")
        register_count(self, count)
        for own, fixed in ((self.weight, "fixed_weight"), (self.bias, "fixed_bias")):
            self.register_parameter(fixed, None if own is None else nn.Parameter(own.detach().clone()))

    def fix_places(self, length: float) -> None:
        """Turns fractions of the training into numbers, and compares one of each kind."""
        super().fix_places(length)
        start, end = self.places["taper_start"], self.places["taper_end"]
        if end < start:
            raise ValueError(f"the taper must not end before it begins: it ends at step {end} and begins at {start}")

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalises x (..., C); pad_mask (...), True = padding, keeps rows out of the means and of the penalty."""
        x, pad_mask = self.check_input(x, pad_mask)
        wide = x.to(statistics_dtype(x.dtype))
        plain = self.normalize_rows(wide)
        if self.training:
            rows, mask = flatten_rows(wide, pad_mask)
            call = self.notes.decide_once(rows, lambda: self.take_rows(rows, plain.detach().view_as(rows), mask))
            gate, scale = call.gate, call.scale
            if self.is_final and self.anchor_weight:
                self.notes.keep_penalty(self.measure_penalty(wide, pad_mask, call))
        else:
            gate, scale = self.find_gate(self.iters.squeeze(0)), self.fixed_scale
        gate, fixed = gate.to(wide.dtype), ((1 - gate) * scale).to(wide.dtype)
        y = plain * (gate if self.weight is None else gate * self.weight)
        y = y + wide * (fixed if self.fixed_weight is None else fixed * self.fixed_weight)
        if self.bias is not None:
            y = y + torch.lerp(self.fixed_bias.to(wide.dtype), self.bias.to(wide.dtype), gate)  # type: ignore[union-attr]
        return y.to(x.dtype)

    def normalize_rows(self, x: Tensor) -> Tensor:
        """Returns N(x) without weight and bias, for x (..., C) in statistics precision."""
        if self.base == "rmsnorm":
            return F.rms_norm(x, (self.num_features,), None, self.eps)
        return F.layer_norm(x, (self.num_features,), None, None, self.eps)

    def measure_sizes(self, x: Tensor) -> Tensor:
        """Returns the sizes (...) by which N divides the rows of x (..., C)."""
        square = x.square().mean(-1) if self.base == "rmsnorm" else x.var(-1, correction=0)
        return (square + self.eps).sqrt()

    @torch.no_grad()
    def take_rows(self, rows: Tensor, plain: Tensor, mask: Tensor | None) -> Call:
        """Takes rows (R, C) and N of them without weight into the means until k_w; begins the taper there."""
        products, num_rows = self.measure_products(rows, plain, mask)
        refused = find_nonfinite(self, products)
        self.nonfinite_counter.add_(refused)
        refused = refused | (torch.as_tensor(num_rows, device=rows.device) == 0)
        advance_steps(self, refused)
        step = self.iters.squeeze(0) - refused.logical_not().long()  # k, those before this one
        measured = (step <= self.taper_start) & ~refused
        means = self.running_products
        share = (step + 1).to(means.dtype).reciprocal().clamp_min(1 - self.momentum)
        means.copy_(torch.where(measured, torch.lerp(means, products.to(means.dtype), share), means))
        starts = measured & (step == self.taper_start)
        least = torch.finfo(means.dtype).tiny
        self.fixed_scale.copy_(torch.where(starts, means[0] / means[1].clamp_min(least), self.fixed_scale))
        for fixed, own in ((self.fixed_weight, self.weight), (self.fixed_bias, self.bias)):
            if fixed is not None and own is not None:
                fixed.copy_(torch.where(starts, own, fixed))
        return Call(self.find_gate(step), self.fixed_scale.clone(), means[2].clone(), step > self.taper_start)

    def measure_products(self, rows: Tensor, plain: Tensor, mask: Tensor | None) -> tuple[Tensor, int | Tensor]:
        """Returns the means of <N(x), γ x>, |γ x|² and the size, (3,), over the rows that are not padding."""
        num_rows: int | Tensor = len(rows)
        if mask is not None:
            padding = mask.unsqueeze(-1)
            rows, plain = rows.masked_fill(padding, 0), plain.masked_fill(padding, 0)
            num_rows = mask.logical_not().sum()
        weights = rows.new_ones(()) if self.weight is None else self.weight.to(rows.dtype).square()
        sums = [(weights * reduce_products(one, rows)[0]).sum() for one in (plain, rows)]
        sizes = rows.new_zeros(())
        if self.is_final:
            sizes = self.measure_sizes(rows).masked_fill(rows.new_zeros(len(rows)).bool() if mask is None else mask, 0)
        total = torch.stack([*sums, sizes.sum()])
        if is_distributed(self.sync):
            total, num_rows = sum_over_processes(total, num_rows, like=total)
        return divide(total, num_rows), num_rows

    def measure_penalty(self, x: Tensor, pad_mask: Tensor | None, call: Call) -> Tensor:
        """Returns the anchor's penalty for x (..., C), without axes."""
        excess = (self.measure_sizes(x) - call.size).square()
        num_rows: int | Tensor = excess.numel()
        if pad_mask is not None:
            excess, num_rows = excess.masked_fill(pad_mask, 0), pad_mask.logical_not().sum()
        return self.anchor_weight * call.anchored * divide(excess.sum(), num_rows)

    def find_gate(self, step: Tensor) -> Tensor:
        """Returns g of the step that comes after `step` others, without axes."""
        length = (self.taper_end - self.taper_start).clamp_min(1)
        progress = ((step - self.taper_start).to(self.fixed_scale.dtype) / length).clamp(0, 1)
        return (1 + torch.cos(math.pi * progress)) / 2

    def describe_obstacle(self) -> str:
        gate = float(self.find_gate(self.iters))
        return f"its taper has not ended: the gate is {gate:.3g}, and folds at 0" if gate else ""

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """Returns the inference map once the taper has ended; None before."""
        if self.iters.is_meta or self.describe_obstacle():
            return None
        scale = self.fixed_scale.expand(self.num_features)
        scale = scale if self.fixed_weight is None else scale * self.fixed_weight
        return scale, torch.zeros_like(scale) if self.fixed_bias is None else self.fixed_bias

    def reset_steps(self) -> None:
        """Leaves the taper as it is: what a model has done without, fine-tuning does not bring back."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for fixed, value in ((self.fixed_weight, 1.0), (self.fixed_bias, 0.0)):
            if fixed is not None:
                nn.init.constant_(fixed, value)

    def watch(self) -> dict[str, Tensor]:
        """Returns the gate beside what every norm watches."""
        return {"gate": self.find_gate(self.iters.squeeze(0)), **super().watch()}
