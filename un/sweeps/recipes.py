"""Whether runs are those of a table's recipe, by what was trained rather than by what was typed. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from un.command.errors import CONFIG_FOLDER
from un.command.value_types import show
from un.reports.runs import Run
from un.sweeps.run_names import PlannedRun
from un.training.config_keys import drop_unused, flatten, is_science, pins_precision
from un.training.run_folder import RunFolder

# Not compared as typed: their effect is recorded, and compared below.
RECORDED = (
    "global_batch_size",
    "trainer.accumulate_grad_batches",
    "norm.count",
    "norm.calls_per_step",
    "init_weights",
    "updates",
)
UPDATES_TOLERANCE = 0.01  # of their number: ours, for incomplete last batches and copies of a data set
BEST = ("checkpoints", "best.ckpt")


def list_departures(planned: PlannedRun, run: Run, find: Callable[[PlannedRun], Run | None]) -> list[str]:
    """Returns how a run departs from its table's recipe, e.g. "trainer.max_steps 3, not -1".

    Args:
        planned: the run as the table plans it.
        run: the run as it was.
        find: reads the run that a planned one starts from.
    """
    folder = RunFolder(run.folder)
    if not folder.config.is_file():
        return ["a run without its config"]
    config, recipe = _flatten_used(folder.read_config()), compose_recipe(planned.recipe)
    found = [*_compare_configs(config, recipe), *_compare_records(run, config, recipe, planned.key[0])]
    return [*found, *_compare_starts(planned, config, recipe, find)]


@functools.cache
def compose_recipe(arguments: tuple[str, ...]) -> Mapping[str, Any]:
    """Returns the config of a table's own arguments: dotted key -> value."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", list(arguments)), resolve=True)
    return _flatten_used(config)


def _flatten_used(config: Any) -> dict[str, Any]:
    drop_unused(config)
    return dict(flatten(config))


def _compare_configs(config: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(config.keys() | recipe.keys()):
        is_seed = key.rpartition(".")[2] == "seed"  # data and callbacks repeat the run's
        if is_science(key) and key not in RECORDED and not is_seed and config.get(key) != recipe.get(key):
            yield _contrast(key, config.get(key), recipe.get(key))
    if (config.get("data.path") is None) != (recipe.get("data.path") is None):
        yield _contrast("data.path", config.get("data.path"), recipe.get("data.path"))


def _compare_records(run: Run, config: Mapping[str, Any], recipe: Mapping[str, Any], experiment: str) -> Iterator[str]:
    execution, norm = run.result.execution, run.result.norm
    batch, updates = recipe.get("global_batch_size"), recipe.get("updates")
    if batch is not None and execution.get("global_batch_size") != batch:
        yield _contrast("a global batch of", execution.get("global_batch_size", "unknown size"), batch)
    if updates is not None and abs(run.result.steps - updates) > UPDATES_TOLERANCE * updates:
        yield _contrast("updates", run.result.steps, updates)
    precision = execution.get("precision", config.get("trainer.precision"))
    if pins_precision(experiment) and precision != recipe.get("trainer.precision"):
        yield _contrast("precision", precision, recipe.get("trainer.precision"))
    accumulated = execution.get("accumulate_grad_batches", 1)
    if accumulated > 1 and norm.get("count") == "calls":
        yield f"norm.count calls, of which {accumulated} make an update"
    calls = recipe.get("norm.calls_per_step")
    if calls is not None and norm.get("calls_per_step") != calls * accumulated:
        yield _contrast("norm.calls_per_step", norm.get("calls_per_step"), calls * accumulated)


def _compare_starts(
    planned: PlannedRun, config: Mapping[str, Any], recipe: Mapping[str, Any], find: Callable[[PlannedRun], Run | None]
) -> Iterator[str]:
    """Compares the weights that a run started from; the run that they come from must follow its recipe, too."""
    weights, start = config.get("init_weights"), planned.start
    if start is None:
        if weights != recipe.get("init_weights"):
            yield _contrast("init_weights", weights, recipe.get("init_weights"))
    elif Path(str(weights)).parts[-5:] != (*start.key, *BEST):
        yield _contrast("init_weights", weights, "/".join((*start.key, *BEST)))
    elif (origin := find(start)) is None:
        yield f"the run it starts from, {'/'.join(start.key)}, is not there"
    else:
        yield from (f"started from {departure}" for departure in list_departures(start, origin, find))


def _contrast(key: str, value: Any, recipe: Any) -> str:
    return f"{key} {show(value)}, not {show(recipe)}"
