"""Words for settings: `norm.warmup_gradient=instant` is shown as "gradient statistic in warm-up: instant"."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

FILE = Path(__file__).with_name("words.yaml")
UNCHANGED = "as configured"


def describe_setting(overrides: Iterable[str]) -> str:
    """Returns overrides, `key=value` each, as a reader says them; the norm comes first and has no key."""
    parts = list(overrides)
    norms = [part for part in parts if part.startswith("norm=")]
    return "; ".join(_describe(part) for part in [*norms, *(part for part in parts if part not in norms)]) or UNCHANGED


def name_norm(choice: str) -> str:
    """Returns the name of a norm, of an unknown one its choice."""
    return str(read_words()["norms"].get(choice, choice))


@functools.cache
def read_words() -> Mapping[str, Any]:
    """Returns the words by kind: norms and options."""
    words = OmegaConf.to_container(OmegaConf.load(FILE))
    assert isinstance(words, dict)
    return {str(kind): entries for kind, entries in words.items()}


def _describe(override: str) -> str:
    key, equals, value = override.lstrip("+").partition("=")
    if key == "norm":
        return name_norm(value)
    option = key.removeprefix("norm.")
    entry = read_words()["options"].get(option, option)
    if not equals or not isinstance(entry, dict):
        return f"{entry}: {value.replace('_', ' ')}" if equals else option
    typed = value.lower() if value in ("True", "False") else value  # folders are named by Python's values
    return f"{entry['name']}: {entry.get(typed, typed.replace('_', ' '))}"
