"""Checks the content of a file against a dataclass and reports the first mistake in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from un.command.errors import suggest

STRICT = ConfigDict(strict=True, extra="forbid")  # of pydantic's dataclasses: nothing is converted, no key is unknown
Content = TypeVar("Content")


def parse(kind: type[Content], text: str | bytes, where: str, parts: Mapping[str, type] | None = None) -> Content:
    """Parses JSON into a dataclass.

    Args:
        kind: a dataclass of pydantic.
        text: the JSON.
        where: what an error begins with.
        parts: the dataclass that the lists of a key hold.

    Raises:
        ValueError: one line with the key, its value and what is allowed.
    """
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
    *parents, key = problem["loc"] or ("",)
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "unexpected_keyword_argument":
        owner: Any = (parts or {}).get(str(parents[0]), kind) if parents else kind
        hint = suggest(str(key), owner.__dataclass_fields__) or f"; allowed: {', '.join(owner.__dataclass_fields__)}"
        raise ValueError(f"{where}: there is no key {name}{hint}")
    if problem["type"] in ("missing", "missing_argument"):
        raise ValueError(f"{where}: {name} is missing")
    expected = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    raise ValueError(f"{where}: {name} is {problem['input']!r}, {expected}" if name else f"{where}: {expected}")
