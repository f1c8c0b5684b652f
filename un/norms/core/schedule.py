"""Schedules of norms: places in the training, given as a number of steps or as a fraction of the whole training.

A norm registers its places when it is built. When a training starts, `set_training_length` turns fractions into
numbers, once: from then on the number is part of the norm's state, as the counter that is compared with it is. A
resumed training therefore keeps its schedule, also where it was made longer or shorter meanwhile, and a model that
starts from another's weights keeps what that one had reached; `Norm.reset_steps` makes a warm-up begin anew.

Steps are what the norm counts: calls, or with `count=updates` those of the optimizer.
"""

from __future__ import annotations

from torch import nn

from un.norms.core.base import NEVER, Norm
from un.norms.core.options import check_at_least, check_fraction


def choose_unit(kind: str, steps: int | None, fraction: float | None, default: float) -> float | int:
    """Returns the one of two options of a place that was given, a fraction as a float and steps as an int.

    Args:
        kind: what the options' names begin with, as in `warmup_steps` and `warmup_fraction`; may be empty.
        steps: a number of steps, or None.
        fraction: of the training, or None.
        default: what to use where both are None.

    Raises:
        ValueError: for both at once, steps that are no whole number of at least 0, or a fraction outside [0, 1].
    """
    steps_name, fraction_name = (f"{kind}_{unit}".lstrip("_") for unit in ("steps", "fraction"))
    if steps is not None and fraction is not None:
        raise ValueError(f"{steps_name}={steps} and {fraction_name}={fraction} exclude each other: set one to null")
    if fraction is not None:
        check_fraction(fraction_name, fraction)
        return float(fraction)
    if steps is None:
        return default
    check_at_least(steps_name, steps, 0)
    if not isinstance(steps, int):
        raise ValueError(f"{steps_name} must be a whole number, got {steps}")
    return steps


def register_place(norm: Norm, name: str, place: float | int) -> None:
    """Registers a place of `choose_unit` as an integer buffer without axes; a fraction is `NEVER` at first."""
    if isinstance(place, float):
        norm.fractions[name] = place
    norm.places[name] = NEVER if isinstance(place, float) else place
    norm.register_state(name, norm.places[name], integer=True)


def set_training_length(model: nn.Module, steps: int, calls: int | None = None) -> list[str]:
    """Tells the norms of a model how long its training is; call it before the first step, and after loading a state.

    `python train.py` does so by itself. Norms without fractions, and fractions that have their number already, stay as
    they are, so a second call does no harm.

    Args:
        model: holds the norms.
        steps: optimizer steps of the whole training.
        calls: training-mode calls of each norm in it, where several make up a step (accumulated gradients); None for
            one a step.

    Returns:
        The names of the norms with a place behind the end of this training.

    Raises:
        ValueError: where a length is not at least 1.
    """
    calls = steps if calls is None else calls
    check_at_least("steps", steps, 1)
    check_at_least("calls", calls, 1)
    late = []
    for name, norm in model.named_modules():
        if isinstance(norm, Norm) and norm.places:
            length = (steps if norm.count == "updates" else calls) / norm.calls_per_step
            norm.fix_places(length)
            late += [name] * (max(norm.places.values()) > round(length))
    return late
