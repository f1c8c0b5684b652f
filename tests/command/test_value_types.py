"""Values of a config against the annotations of what takes them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Optional

import pytest

from un.command.errors import UserError
from un.command.value_types import FromOne, NumberAboveZero, check_kinds, describe_kind, fits


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        ("1", int, False),
        (1, float, True),
        (float("inf"), float, True),
        (float("nan"), int | float, False),
        (True, float, False),
        (1, bool, False),
        (1, str, False),
        (None, Optional[int], True),  # noqa: UP045  as libraries write it
        (None, int, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        ([1, 2], tuple[int, ...], True),
        ([float("nan"), 1.0], list[float], False),
        (0, FromOne, False),
        (0, NumberAboveZero, False),
        ([1, "a"], Sequence[int], False),
        ("ab", Sequence[str], False),
        (1, int | Sequence[int], True),
        ({"a": 1}, Mapping[str, Any], True),
        ([1], dict[str, Any], False),
        (len, Callable[..., int], True),
        ("len", Callable[..., int], False),
        (object(), Any, True),
    ],
)
def test_fits(value: object, kind: object, expected: bool) -> None:
    assert fits(value, kind) is expected


def test_descriptions() -> None:
    assert describe_kind(int | None) == "an integer or null"
    assert describe_kind(FromOne | Literal[-1]) == "an integer of at least 1 or -1"
    assert describe_kind(bool | Mapping[str, Any]) == "true or false or a mapping"
    assert describe_kind(Literal["a", "b"]) == "one of a, b"
    assert describe_kind(int | Sequence[int]) == "an integer or a list"


def test_the_key_is_named() -> None:
    class Part:
        def __init__(self, size: int, rate: float = None, **others: Any) -> None:  # noqa: RUF013  as timm writes it
            pass

    check_kinds("part", Part, {"size": 1, "rate": None, "other": "anything"})
    with pytest.raises(UserError, match=r"^part\.size=abc must be an integer$"):
        check_kinds("part", Part, {"size": "abc"})
    with pytest.raises(UserError, match=r"^part\.rate=true must be a number$"):
        check_kinds("part", Part, {"rate": True})
