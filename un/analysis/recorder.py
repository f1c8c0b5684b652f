"""Observes the inputs of a model's norms through hooks, and summarises them in one row per norm and step.

A recorded step also needs the second moments of the call before, for the fluctuation; that call is observed more
cheaply. In all other steps no hook is attached, so they cost nothing. Each process sees its own batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from un.analysis.recorded_norms import RecordedNorm
from un.analysis.statistics import Observation, measure_fluctuation, measure_gradient, measure_square, observe

MOMENT_PERCENTS = tuple(range(0, 101, 5))  # fine enough to draw a histogram from
PERCENTS = (0, 5, 50, 95, 100)
# Vectors over channels and the percentiles kept of each, as columns <name>_p<percent>. Units: those of x² for moment;
# fluctuation in natural logarithms; the gradients as sums of loss times activation. In float16 training the running
# gradient still holds the loss scale, as the norm does.
VECTORS: dict[str, tuple[int, ...]] = {
    "moment": MOMENT_PERCENTS,  # second moment of the batch around zero
    "fluctuation": PERCENTS,  # |ln| of its ratio to the call before
    "running_ratio": PERCENTS,  # second moment as the norm takes it, over the running one that inference would use
    "gradient": PERCENTS,  # |p|, the batch's gradient statistic
    "running_gradient": PERCENTS,  # |ψ|, its running average
}
# Of the call, see `un.analysis.statistics.Observation`; then after it, see `un.norms.Norm.measure_discrepancy`.
SCALARS = ("peak", "gap", "threshold", "mean_discrepancy", "scale_discrepancy")
COUNTERS = {"calls": "iters", "filtered_calls": "skip_counter", "nonfinite_calls": "nonfinite_counter"}

StatisticsRow = dict[str, Any]


class Recorder:
    """Records chosen norms; VECTORS, SCALARS and COUNTERS name the columns, NaN where a norm lacks one.

    Args:
        sites: of one model.
    """

    def __init__(self, sites: Sequence[RecordedNorm]) -> None:
        self.sites = list(sites)
        self._handles: list[RemovableHandle] = []
        self._previous: dict[str, Tensor] = {}
        self._seen: dict[str, tuple[Observation, Tensor]] = {}

    def attach(self, full: bool) -> None:
        """Observes every call until `detach`; a later call of a norm replaces an earlier one.

        Args:
            full: measure all; False takes only the moments that the next call is compared with.
        """
        self.detach()
        self._seen = {}
        for site in self.sites:
            hook = partial(self._look, site, full)
            self._handles.append(site.module.register_forward_pre_hook(hook, with_kwargs=True))

    def detach(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def collect(self, step: int) -> list[StatisticsRow]:
        """Returns one row per norm that was called since `attach(full=True)`, once the gradients are there.

        Costs one transfer from the device.
        """
        seen = [site for site in self.sites if site.name in self._seen]
        values = torch.stack([self._sum_up(site) for site in seen]).tolist() if seen else []
        channels = [len(self._seen[site.name][0].moment) for site in seen]
        return [_name_values(step, *found) for found in zip(seen, channels, values, strict=True)]

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the moments of the last observed call, by site, so that a resumed run records the same."""
        return dict(self._previous)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._previous = dict(state)

    @torch.no_grad()
    def _look(
        self, site: RecordedNorm, full: bool, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        x, pad_mask = _read_call(module, arguments, keywords)
        if x.numel() == 0:
            return
        if not full:
            self._previous[site.name] = measure_square(site, x, pad_mask)
            return
        seen = observe(site, x, pad_mask)
        previous = self._previous.get(site.name)
        if previous is None:
            fluctuation = torch.full_like(seen.moment, math.nan)
        else:
            fluctuation = measure_fluctuation(seen.moment, previous.to(seen.moment.device), site.eps)
        self._previous[site.name] = seen.moment
        self._seen[site.name] = (seen, fluctuation)

    def _sum_up(self, site: RecordedNorm) -> Tensor:
        """Returns the percentiles of all VECTORS, then SCALARS and COUNTERS."""
        seen, fluctuation = self._seen[site.name]
        gradients = (measure_gradient(site, seen.num_rows), site.read_buffer("ema_gz"))
        absolute = [None if value is None else value.abs() for value in gradients]
        vectors = torch.stack(_fill([seen.moment, fluctuation, seen.running_ratio, *absolute], seen.moment))
        levels = torch.tensor(MOMENT_PERCENTS, dtype=torch.float32, device=vectors.device) / 100
        counters = [site.read_buffer(name) for name in COUNTERS.values()]
        scalars = _fill([seen.peak, seen.gap, seen.threshold, *site.read_discrepancy(), *counters], seen.peak)
        return torch.cat([vectors.quantile(levels, dim=1).T.flatten(), *(value.view(1) for value in scalars)])


def _read_call(
    module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Returns input and padding mask of a call, or the mask that is shared with the norm."""
    x, *rest = arguments or tuple(keywords.values())
    pad_mask = keywords.get("pad_mask", rest[0] if rest else None)
    pad_mask = getattr(module, "shared_pad_mask", None) if pad_mask is None else pad_mask
    return x, pad_mask


def _fill(values: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """Returns the values as float32, NaN in the shape of `like` for None."""
    return [torch.full_like(like, math.nan).float() if value is None else value.float() for value in values]


def _name_values(step: int, site: RecordedNorm, channels: int, values: Sequence[float]) -> StatisticsRow:
    row: StatisticsRow = {"step": step, "layer": site.layer, "site": site.name, "channels": channels}
    width = len(MOMENT_PERCENTS)
    for place, (name, percents) in enumerate(VECTORS.items()):
        quantiles = dict(zip(MOMENT_PERCENTS, values[place * width : (place + 1) * width], strict=True))
        row |= {f"{name}_p{percent}": quantiles[percent] for percent in percents}
    row |= zip([*SCALARS, *COUNTERS], values[len(VECTORS) * width :], strict=True)
    return row
