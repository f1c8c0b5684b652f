"""Compares the values of a config with type annotations, so that a wrong kind is reported at once."""

import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from un.command.errors import UserError

FromZero = Annotated[int, Ge(0)]
FromOne = Annotated[int, Ge(1)]
NumberFromZero = Annotated[float, Ge(0)]
NumberAboveZero = Annotated[float, Gt(0)]
STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)
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
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    except (NameError, TypeError):  # a name that only type checkers import; a target written in C
        return
    parameters = inspect.signature(target).parameters
    for name, value in arguments.items():
        if name in parameters and name in hints and value is not parameters[name].default:
            check_kind(f"{key}.{name}", value, hints[name])


def check_kind(key: str, value: Any, kind: Any) -> None:
    """Compares one value with an annotation.

    Raises:
        UserError: names the key, its value and what is allowed.
    """
    if not fits(value, kind):
        hint = f"""; quote what is text, as in '{key}="..."'""" if fits("", kind) else ""
        raise UserError(f"{key}={show(value)} must be {describe_kind(kind)}{hint}")


def fits(value: Any, kind: Any) -> bool:
    """Tells whether a value is of an annotated kind; NaN is not a number, and a list may stand for a tuple."""
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, float) and item != item for item in items):
        return False
    try:
        adapter = _adapt(kind)
    except (PydanticUserError, TypeError):  # a kind that pydantic does not know, such as a protocol
        return True
    return any(_is_valid(adapter, one) for one in ([value, tuple(value)] if isinstance(value, list) else [value]))


@functools.cache
def _adapt(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=STRICT)


def _is_valid(adapter: TypeAdapter[Any], value: Any) -> bool:
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


def describe_kind(kind: Any) -> str:
    """Returns for instance "an integer of at least 1 or null"."""
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(describe_kind, options)))
    if origin is Literal:
        return ("one of " if len(options) > 1 else "") + ", ".join(map(show, options))
    if origin is Annotated:
        bound = options[1]
        allowed = f" of at least {bound.ge}" if isinstance(bound, Ge) else f" above {bound.gt}"
        return f"{describe_kind(options[0])}{allowed}"
    plain = origin or kind
    return NAMES.get(plain, getattr(plain, "__name__", str(plain)))


def show(value: Any) -> str:
    """Returns a value as it is written in a config."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
