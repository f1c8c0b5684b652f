"""Compares the values of a config with the annotations of what takes them, so that a wrong kind is told at once."""

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from un.command.errors import UserError

NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    dict: "a mapping",
    Mapping: "a mapping",
    list: "a list",
    tuple: "a list",
    Sequence: "a list",
    type(None): "null",
}


def check_kinds(key: str, target: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Compares arguments with the annotations of a function or a constructor.

    A default is right whatever its annotation says, as in `lr: float = None`.

    Raises:
        UserError: names the key, its value and what is allowed.
    """
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):  # a name that only type checkers import; a target written in C
        return
    parameters = inspect.signature(target).parameters
    for name, value in arguments.items():
        known = name in parameters and name in hints and value is not parameters[name].default
        if known and not fits(value, hints[name]):
            hint = f"""; quote what is text, as in '{key}.{name}="..."'""" if fits("", hints[name]) else ""
            raise UserError(f"{key}.{name}={show(value)} must be {describe_kind(hints[name])}{hint}")


def fits(value: Any, kind: Any) -> bool:
    """Tells whether a value is of an annotated kind; NaN is no number, and whole numbers are numbers."""
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in options)
    if origin is Literal:
        return any(value is option or (type(value) is type(option) and value == option) for option in options)
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool) and value == value
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(fits(item, options[0]) for item in value)
    plain = origin or kind
    if plain is Any or not inspect.isclass(plain) or getattr(plain, "_is_protocol", False):
        return True
    return isinstance(value, plain)


def describe_kind(kind: Any) -> str:
    """Returns e.g. "an integer or null"."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(describe_kind, get_args(kind))))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(show, get_args(kind)))}"
    plain = get_origin(kind) or kind
    return NAMES.get(plain, getattr(plain, "__name__", str(plain)))


def show(value: Any) -> str:
    """Returns a value as it is written in a config."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
