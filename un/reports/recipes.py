"""Compares published recipes, value by value, with what our experiments compose: the page docs/recipes.md.

docs/recipes/*.yaml hold what is published. A value that a config sets is read from it and compared; a value that code
sets is guarded by a test, which is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic.dataclasses import dataclass

from un.reports.rendering import format_table
from un.reports.validation import STRICT, parse

HEADER = ("value", "published", "ours", "source", "comparison")
CHOICE = "choice"  # instead of a source, where no source says anything
WORDS = {None: "off", True: "true", False: "false"}


@dataclass(frozen=True, config=STRICT)
class Value:
    """One value of a recipe.

    Attributes:
        value: what it is.
        source: where it is published, or `choice`.
        published: as the config would have it if there is a key, else a text.
        key: dotted key of the composed config.
        ours: a text, where there is no key; None for the published one.
        test: the test that guards a value without a key, `<file>::<name>`.
        reason: why ours differs; None where it does not.
    """

    value: str
    source: str
    published: Any = None
    key: str | None = None
    ours: str | None = None
    test: str | None = None
    reason: str | None = None


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """A published recipe.

    Attributes:
        title: of its section.
        experiments: that follow it and agree in all its values.
        values: in the order of the table.
        setting: what else a reader must know.
    """

    title: str
    experiments: tuple[str, ...]
    values: tuple[Value, ...]
    setting: str = ""


def read_recipe(path: Path) -> Recipe:
    """Reads a file of docs/recipes.

    Raises:
        ValueError: an unknown key, or a value with neither a key nor a test nor a reason for another one.
    """
    content = json.dumps(OmegaConf.to_container(OmegaConf.load(path)))
    recipe = parse(Recipe, content, path.name, {"values": Value})
    for value in recipe.values:
        if value.key is None and value.test is None and (value.ours is None or value.reason is None):
            raise ValueError(f"{path.name}: {value.value} needs a key, a test, or ours and the reason for it")
    return recipe


def render_recipe(recipe: Recipe, configs: Mapping[str, DictConfig]) -> str:
    """Returns heading and table.

    Args:
        recipe: what is published.
        configs: of its experiments, composed.

    Raises:
        ValueError: ours is not what is published and no reason is given, or one is given and it is.
    """
    rows = [_compare(value, [configs[name] for name in recipe.experiments]) for value in recipe.values]
    table = format_table(HEADER, rows)
    commands = ", ".join(f"`experiment={name}`" for name in recipe.experiments)
    return "\n\n".join([f"## {recipe.title}", f"{commands}. {recipe.setting}".strip(), table]) + "\n"


def _compare(value: Value, configs: Iterable[DictConfig]) -> list[str]:
    """Returns the cells of a row."""
    published = show(value.published)
    if value.key is None:
        ours, is_equal = value.ours or published, value.reason is None
    else:
        found = [_select(config, value.key) for config in configs]
        ours, is_equal = f"`{value.key}={show(found[0])}`", all(entry == value.published for entry in found)
        if any(entry != found[0] for entry in found):
            raise ValueError(f"{value.key} differs between the experiments of a recipe: {', '.join(map(show, found))}")
    if value.source == CHOICE:
        return [value.value, "–", ours, CHOICE, value.reason or ""]
    if is_equal == (value.reason is not None):
        fault = "is the published value, but a reason for another one is given" if is_equal else "needs a reason"
        raise ValueError(f"{value.value}: {ours} {fault} (published: {published})")
    verdict = f"**differs**: {value.reason}" if value.reason else "equal"
    if value.test is not None:
        file, _, name = value.test.partition("::")
        verdict += f" ([{name}](../{file}))"
    return [value.value, published, ours, value.source, verdict]


def _select(config: DictConfig, key: str) -> Any:
    found = OmegaConf.select(config, key, throw_on_missing=True)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


def show(value: Any) -> str:
    """Returns a value of a config as a reader writes it."""
    if value is None or isinstance(value, bool):
        return WORDS[value]
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {show(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(show, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
