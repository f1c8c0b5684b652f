"""Which keys of a config make a run another one, and which only say where and how it runs or what it leaves behind."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from un.command.errors import CONFIG_FOLDER

# Options that a run derives from its accumulation unless they are given, even with these values.
FROM_EXECUTION = ("norm.count", "norm.calls_per_step")


def is_science(key: str) -> bool:
    """Tells whether a run with another value there is another run; configs/hydra/default.yaml lists the other keys."""
    return not any(re.match(rf"{re.escape(other)}(?:[./@]|$)", key) for other in _read_other_keys())


@functools.cache
def _read_other_keys() -> tuple[str, ...]:
    settings = OmegaConf.load(CONFIG_FOLDER / "hydra/default.yaml")
    return tuple(settings.job.config.override_dirname.exclude_keys)


@functools.cache
def read_experiment(name: str) -> Mapping[str, Any]:
    """Returns what an experiment's file sets, and those that it builds on: dotted key -> value; nothing for no file.

    The groups that they choose are there under their names in the file, as `override /task`.
    """
    file = CONFIG_FOLDER / "experiment" / f"{name}.yaml"
    if not file.is_file():
        return {}
    content = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(content, dict)
    values: dict[str, Any] = {}
    for base in content.pop("defaults", []):
        values |= read_experiment(base) if isinstance(base, str) else base
    return values | dict(flatten(content))


@functools.cache
def read_norm(norm: str, experiment: str) -> Mapping[str, Any]:
    """Returns the options of a norm in an experiment, `norm.<option>` -> value, where nothing is overridden.

    Read from the files, as composing a config takes a tenth of a second. Options are left out where what they are
    depends on more than these files.
    """
    train: Any = OmegaConf.load(CONFIG_FOLDER / "train.yaml")
    chosen = dict(read_experiment(experiment))
    default = next(entry.task for entry in train.defaults if isinstance(entry, DictConfig) and "task" in entry)
    task: Any = OmegaConf.load(CONFIG_FOLDER / "task" / f"{chosen.get('override /task', default)}.yaml")
    defaults = {f"norm_defaults.{key}": value for key, value in task.norm_defaults.items()} | chosen
    options = {f"norm.{key}": value for key, value in _read_options(CONFIG_FOLDER / "norm", norm).items()} | chosen
    found: dict[str, Any] = {}
    for key, value in options.items():
        reference = re.fullmatch(r"\$\{(norm_defaults\.\w+)\}", value) if isinstance(value, str) else None
        value = defaults.get(reference[1]) if reference else value
        if key.startswith("norm.") and key not in FROM_EXECUTION and "${" not in str(value):
            found[key] = value
    return found


def _read_options(folder: Path, name: str) -> dict[str, Any]:
    """Returns what a file of a config group sets, and those in its own folder and below that it builds on."""
    file = folder / f"{name}.yaml"
    content: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    options: dict[str, Any] = {}
    for base in content.pop("defaults", []):
        path = base if isinstance(base, str) else "/".join(f"{key.partition('@')[0]}/{v}" for key, v in base.items())
        options |= _read_options(folder, path) if path != "_self_" else {}
    return options | {key: value for key, value in content.items() if not key.startswith("_")}


def pins_precision(experiment: str) -> bool:
    """Tells whether the precision is part of a recipe, rather than left to where it runs."""
    return read_experiment(experiment).get("trainer.precision") is not None


def drop_unused(config: Any) -> None:
    """Sets what a config says about retrofitting to null where nothing is: it makes no other run."""
    if config.get("retrofit") is None and "retrofit_options" in config:
        config["retrofit_options"] = None


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted key and value of every leaf; an empty mapping is one."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
