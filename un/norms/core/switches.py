"""The options in which the official UN code, the paper and our own variants differ (S1 to S20, docs/switches.md)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin, get_type_hints

from un.norms.core.options import check_at_least, check_choice, check_flags, make_pair


@dataclass(frozen=True)
class Switches:
    """Every default is the official code's behaviour; `configs/norm/un_paper.yaml` sets the paper's.

    S4 (warm-up), S18 (window) and S19 (momentum) also have arguments of their own on `UnifiedNorm`; S15, the inference
    statistic recomputed on a calibration set, is `un.norms.calibrate`.

    Attributes:
        compensation: S1. Ratio r of window to running scale in the gradients of input and weight, of input, or nowhere.
        compensation_limits: S2. Clamp of r; None for no clamp.
        compensation_start: S2. r = 1 while t <= max(compensation_start, warmup_steps).
        warmup_gradient: S3. Gradient statistic in warm-up: the running average (from 0), or this batch's own, which
            then also replaces the running average (paper step P4).
        smoothing_start: S4. Smooth once the window was passed (t > M, official) or is full (t >= M, paper; filtration
            then waits for a full window too).
        threshold_window: S5. Variance from the window before or after the new entry.
        threshold_scope: S6. One variance for the layer or one per channel.
        threshold_divisor: S7. Sample (n - 1) or population (n) variance.
        threshold_factor: Multiplies the variance; None for M (paper). Ours.
        filter_decision: S8. Any channel drops the layer, each channel itself, or means over channels are compared.
        filtered_moment: S9. What the forward window keeps after a drop: running, this batch's, or the old entry.
        filtered_gradient: S10. The same for the backward window.
        filtered_gradient_average: S11. The running gradient statistic after a drop: update with this batch's, replace
            by it, or keep.
        filtered_running: S12. The running second moment after a drop: update with the outlier, or freeze.
        forward_average: S13. Average over the forward window.
        backward_average: Backward smoothing: window mean then running average (official), either alone, or none. Ours.
        pad_moment: S14. Padding in the second moment.
        pad_gradient: S14. Padding in the gradient statistic: rows counted and corrected (official), or left out
            (paper step P4: the sum over all rows over the number of unpadded ones, padded rows not corrected).
        statistics_type: S16. Accumulate second moments in float32 (ours, the default) or the input's type (official).
        sync: S17. Sum statistics over processes.
        single_window: S18. A window of 1 switches all smoothing off (official), or still averages gradients (paper).
        centering: S20, ours. Subtract nothing (official), the batch mean, or the window's mean of means; the gradient
            through the mean is exact, and padding is then always left out of the gradient statistic.
        count: What window and warm-up count: calls of this layer (official), or optimizer updates, of which the calls
            (accumulated gradients) share a window entry; see `un.norms.core.updates`. Ours.
        reject_nonfinite: A batch with a non-finite statistic leaves no trace in the state; it is normalised by the
            running statistic and counted. False lets it in (official).
    """

    compensation: Literal["full", "input", "none"] = "full"
    compensation_limits: tuple[float, float] | None = (0.2, 5.0)
    compensation_start: int = 1000
    warmup_gradient: Literal["running", "instant"] = "running"
    smoothing_start: Literal["after_window", "full_window"] = "after_window"
    threshold_window: Literal["before", "after"] = "before"
    threshold_scope: Literal["layer", "channel"] = "layer"
    threshold_divisor: Literal["sample", "population"] = "sample"
    threshold_factor: float | None = None
    filter_decision: Literal["any", "channel", "mean"] = "any"
    filtered_moment: Literal["running", "batch", "keep"] = "running"
    filtered_gradient: Literal["running", "batch", "keep"] = "running"
    filtered_gradient_average: Literal["update", "replace", "keep"] = "update"
    filtered_running: Literal["update", "freeze"] = "update"
    forward_average: Literal["geometric", "arithmetic", "harmonic", "last"] = "geometric"
    backward_average: Literal["window_running", "window", "running", "instant"] = "window_running"
    pad_moment: Literal["excluded", "included"] = "excluded"
    pad_gradient: Literal["included", "excluded"] = "included"
    statistics_type: Literal["float32", "input"] = "float32"
    sync: bool = False
    single_window: Literal["unsmoothed", "smoothed"] = "unsmoothed"
    centering: Literal["none", "batch", "window"] = "none"
    count: Literal["calls", "updates"] = "calls"
    reject_nonfinite: bool = True

    def __post_init__(self) -> None:
        """Raises a ValueError that names the switch, the value and what is allowed."""
        for name, hint in get_type_hints(Switches).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal:
                check_choice(name, value, get_args(hint))
            if hint is bool:
                check_flags(**{name: value})
        if self.compensation_limits is not None:
            low_high = make_pair("compensation_limits", self.compensation_limits)
            if not 0 <= low_high[0] <= 1 <= low_high[1]:
                raise ValueError(f"compensation_limits must be a pair around 1, got {self.compensation_limits}")
            object.__setattr__(self, "compensation_limits", low_high)
        check_at_least("compensation_start", self.compensation_start, 0)
        if self.threshold_factor is not None:
            check_at_least("threshold_factor", self.threshold_factor, 0)

    def describe_changes(self) -> str:
        """Returns the switches that differ from the default, as `, name=value` each."""
        changed = ((f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default)
        return "".join(f", {name}={value}" for name, value in changed)


def build_switches(**options: object) -> Switches:
    """Builds Switches; an unknown name is a ValueError that suggests the nearest.

    Raises:
        ValueError: for an unknown switch or a value that is not allowed.
    """
    known = [f.name for f in fields(Switches)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
            raise ValueError(f"UnifiedNorm has no option {name}{hint}")
    return Switches(**options)  # type: ignore[arg-type]
