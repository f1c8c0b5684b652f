"""Which keys of a config make a run another one, and which only say where and how it runs or what it leaves behind."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from un.command.errors import CONFIG_FOLDER

# Keys which change nothing about the science of a run, with everything below them.
OTHER_KEYS = (
    *("experiment", "ablation", "table", "hparams_search", "force", "logger", "paths", "hydra", "updates"),
    *("data.path", "data.num_workers"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.precision"),
    *("trainer.enable_progress_bar", "trainer.log_every_n_steps", "trainer.profiler"),
    *(
        "callbacks.checkpoints",
        "callbacks.divergence",  # ends a run early, but no finished run has other numbers for it
        "callbacks.watch_norms",
        "callbacks.metrics_file",
        "callbacks.progress_bar",
        "callbacks.progress_log",
        "callbacks.activation_stats",
    ),
)
# Of these, those that leave something behind; a finished run that is asked for more of it would have to run again.
RECORDERS = (
    *("logger", "trainer.log_every_n_steps", "trainer.profiler"),
    *("callbacks.watch_norms", "callbacks.metrics_file", "callbacks.activation_stats"),
)


def is_science(key: str) -> bool:
    """Tells whether a run with another value there is another run."""
    return not _is_among(key, OTHER_KEYS)


def is_recorder(key: str) -> bool:
    """Tells whether a key says what a run leaves behind beside its result."""
    return _is_among(key, RECORDERS)


@functools.cache
def read_experiment(name: str) -> Mapping[str, Any]:
    """Returns what an experiment's file sets, and those that it builds on: dotted key -> value; nothing for no file."""
    file = CONFIG_FOLDER / "experiment" / f"{name}.yaml"
    if not file.is_file():
        return {}
    content = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(content, dict)
    values: dict[str, Any] = {}
    for base in content.pop("defaults", []):
        values |= read_experiment(base) if isinstance(base, str) else {}
    return values | dict(flatten(content))


def pins_precision(experiment: str) -> bool:
    """Tells whether the precision is part of a recipe, rather than left to where it runs."""
    return read_experiment(experiment).get("trainer.precision") is not None


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted key and value of every leaf; an empty mapping is one."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _is_among(key: str, others: Iterable[str]) -> bool:
    """Tells whether a key is one of the others or below one."""
    return any(re.match(rf"{re.escape(other)}(?:[./@]|$)", key) for other in others)
