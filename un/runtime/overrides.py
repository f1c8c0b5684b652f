"""Overrides as the shell hands them over, made into what Hydra's grammar reads as the same text.

Hydra gives a meaning to spaces, commas, brackets, =, ~, quotes and backslashes, and takes 007 for 7. Whatever it cannot
read is therefore quoted, and a path always is, unless quotes say that the user knows the grammar. Imports no torch.
"""

from __future__ import annotations

import os
import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException

# Keys where nothing but a path or null is right, and whether a sweep may vary it.
PATHS = {"data.path": True, "init_weights": True, "output": False, "paths.runs": False, "run": False}
CHOICE = re.compile(r"""\s*('(?:\\.|[^\\'])*'|"(?:\\.|[^\\"])*"|[^,]*?)\s*(?:,|$)""", re.DOTALL)


def quote_override(argument: str, is_sweep: bool = False) -> str:
    """Quotes the value of `key=value` where Hydra would not read it as it is typed; other arguments stay.

    Args:
        argument: of the command line.
        is_sweep: whether commas part the values of several runs. Otherwise they belong to a path, and also where a
            file or folder of that name is there, as run folders have commas in their names.
    """
    key, separator, value = argument.partition("=")
    if not separator or key.startswith("-"):
        return argument
    one_path = not PATHS.get(key.lstrip("+"), True) or (_is_path(key) and os.path.exists(os.path.expanduser(value)))
    if is_sweep and not one_path:
        override = _parse(argument)
        listed = override is not None and isinstance(override._value, ChoiceSweep) and override._value.simple_form
        if override is None or (listed and _is_path(key)):
            return f"{key}={','.join(_quote_value(key, choice) for choice in _split_choices(value))}"
        if override.is_sweep_override():
            return argument
    return f"{key}={_quote_value(key, value)}"


def _quote_value(key: str, value: str) -> str:
    override = _parse(f"{key}={value}")
    if override is not None and _is_meant(override, value, _is_path(key)):
        return value
    home = _is_path(key) and (value == "~" or value.startswith("~/"))  # which a shell replaces in `a=~` only
    quoted = QuotedString(os.path.expanduser(value) if home else value, Quote.double).with_quotes()
    return value if _parse(f"{key}={quoted}") is None else quoted


def _is_meant(override: Override, value: str, is_path: bool) -> bool:
    """Tells whether what Hydra reads is what was typed, or what only someone who knows Hydra types."""
    read = override._value
    if isinstance(read, str):
        return read == value
    return read is None or isinstance(read, QuotedString) or not is_path


def _is_path(key: str) -> bool:
    return key.lstrip("+") in PATHS


def _split_choices(value: str) -> list[str]:
    """Returns what commas part, but for those in quotes."""
    choices, end = [], 0
    while True:
        found = CHOICE.match(value, end)
        assert found is not None, "its last alternative fits everything"
        choices.append(found[1])
        if found.end() == len(value) and not found[0].endswith(","):
            return choices
        end = found.end()


def _parse(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None
