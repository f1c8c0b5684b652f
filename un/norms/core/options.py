"""Checks of what norms are built with; every error is one line that names the option, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raises a ValueError where a value is not one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value}")


def check_flags(**values: object) -> None:
    """Raises a ValueError where a value is not true or false."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value}")


def is_number(value: object) -> bool:
    """Tells whether a value is an int or a float; a bool is neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_at_least(name: str, value: float, least: float) -> None:
    """Raises a ValueError where a value is not a number of at least `least`; NaN is not."""
    if not is_number(value) or not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_groups(num_groups: int, num_features: int) -> None:
    """Raises a ValueError where channels cannot be parted into so many groups of one size."""
    check_at_least("num_groups", num_groups, 1)
    if num_features % num_groups:
        raise ValueError(f"num_groups must divide num_features = {num_features}, got {num_groups}")


def check_fraction(name: str, *values: float) -> None:
    """Raises a ValueError where a value is not a number in [0, 1]."""
    for value in values:
        if not is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")


def make_pair(name: str, value: Any) -> tuple[Any, Any]:
    """Returns a (forward, backward) pair from one number or from two; raises a ValueError for anything else."""
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(pair) != 2 or not all(map(is_number, pair)):
        raise ValueError(f"{name} must be a number or a (forward, backward) pair, got {value}")
    return pair


def make_fractions(name: str, value: Any) -> tuple[float, float]:
    """Returns a (forward, backward) pair of numbers in [0, 1]; raises a ValueError for anything else."""
    pair = make_pair(name, value)
    check_fraction(name, *pair)
    return pair


def make_windows(window: int | Sequence[int]) -> tuple[int, int]:
    """Returns the sizes of the (forward, backward) windows; raises a ValueError where one is not a whole number > 0."""
    sizes = make_pair("window", window)
    if not all(isinstance(size, int) for size in sizes):
        raise ValueError(f"window must be a whole number or two, got {window}")
    check_at_least("window", min(sizes), 1)
    return sizes
