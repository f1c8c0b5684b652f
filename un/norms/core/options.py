"""Checks of what norms are built with; every error is one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


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


def check_fraction(name: str, *values: float) -> None:
    """Raises a ValueError where a value is no number or outside [0, 1]."""
    for value in values:
        if not is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")


def make_fractions(name: str, value: Any) -> tuple[float, float]:
    """Returns a (forward, backward) pair of numbers in [0, 1].

    Raises:
        ValueError: for anything else.
    """
    pair = make_pair(name, value)
    check_fraction(name, *pair)
    return pair


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


def make_windows(window: int | Sequence[int]) -> tuple[int, int]:
    """Returns the sizes of the (forward, backward) windows.

    Raises:
        ValueError: for anything but one or two whole numbers of at least 1.
    """
    sizes = make_pair("window", window, whole=True)
    check_at_least("window", min(sizes), 1)
    return sizes
