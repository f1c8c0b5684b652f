"""Runs by name: what `train.py -m <arguments>` would call its run folders, without composing a config for each run.

Composing takes a tenth of a second or more, which adds up to minutes over all tables; whatever is started is
composed and checked by `un.sweeps.launch.expand`. Imports no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from un.command.errors import CONFIG_FOLDER, UserError
from un.reports.result import Result, read_result
from un.training.config_keys import is_science
from un.training.data_identity import resolve_path
from un.training.run_folder import DEFAULT_EXPERIMENT, RunFolder, drop_defaults, name_run, read_overrides


@dataclass(frozen=True)
class PlannedRun:
    """A run that a sweep or a table asks for, whether it is there or not.

    Attributes:
        folder: the run folder, relative to the working directory where `paths.runs` is.
        arguments: of train.py for this run alone.
        force: whether it starts over although it has a result.
        recipe: what a table alone would give for `arguments`.
        start: the run whose best weights this one starts from.
    """

    folder: Path
    arguments: tuple[str, ...]
    force: bool = False
    recipe: tuple[str, ...] = ()
    start: PlannedRun | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Experiment, setting and seed: the name of the run folder wherever the runs lie."""
        experiment, setting, seed = self.folder.parts[-3:]
        return experiment, setting, seed

    @property
    def status(self) -> Literal["finished", "diverged", "interrupted", "failed", "missing"]:
        """An interrupted run began to train and was killed, broke off or is still running; a failed run never began."""
        result = self.find_result()
        if result is None:
            return RunFolder(self.folder).status
        return "finished" if result.status == "finished" else "diverged"

    def find_result(self) -> Result | None:
        """Reads the result of a finished or diverged run.

        Raises:
            ValueError: The result.json is damaged.
        """
        path = RunFolder(self.folder).result
        return read_result(path) if path.exists() else None


def list_runs(arguments: Sequence[str]) -> list[PlannedRun]:
    """Lists the runs of `train.py -m <arguments>`, each once; nothing for no arguments."""
    if not arguments:
        return []
    named = read_choices(arguments)
    sweep = _compose_base(named.get("experiment"), named.get("ablation"))
    runs: dict[Path, PlannedRun] = {}
    (jobs,) = BasicSweeper.split_arguments(parse([*list_params(sweep), *arguments]), None)
    for job in jobs:
        choices = read_choices(job)
        experiment = choices.get("experiment", DEFAULT_EXPERIMENT)
        base = _compose_base(choices.get("experiment"), choices.get("ablation"))
        defaults = base.hydra.runtime.choices
        root = choices.get("paths.runs", base.paths.runs)
        resolved = [argument.replace("${paths.runs}", root) for argument in job]  # another run's checkpoint
        seed = int(choices.get("seed", base.seed))
        name = name_run(experiment, choices.get("norm", defaults.norm), resolved, seed, defaults.data)
        folder = Path(root) / name
        if folder in runs:
            check_one_run(folder, runs[folder].arguments, job)
        runs[folder] = PlannedRun(folder, tuple(job))
    return list(runs.values())


def list_params(sweep: DictConfig) -> list[str]:
    """Returns what the sweeper of a composed config varies by itself, as overrides."""
    return [f"{key}={value}" for key, value in (sweep.hydra.sweeper.params or {}).items()]


def check_one_run(folder: Path, first: Sequence[str], second: Sequence[str]) -> None:
    """Checks that two jobs with the same run folder are the same run.

    Raises:
        UserError: They differ in their data, or in values that look the same in the name of a folder.
    """
    before, now = map(_read_meaning, (first, second))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            values = " and ".join(f"{key}={found.get(key)}" for found in (before, now))
            raise UserError(f"{values} would both be the run {folder}: start one of them with another paths.runs")


def _read_meaning(arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the values of a job that its result depends on, with the data in one spelling."""
    choices, base = read_choices(arguments), _compose_base(None, None)
    experiment = choices.get("experiment", DEFAULT_EXPERIMENT)
    norm = choices.get("norm", base.hydra.runtime.choices.norm)
    values = drop_defaults(read_overrides(arguments), norm, experiment)
    plain = {key.lstrip("+"): value for key, value in values.items()}
    if plain.get("data.path") is not None:
        plain["data.path"] = resolve_path(str(plain["data.path"]))
    return {key: value for key, value in plain.items() if is_science(key) or key in ("data.path", "trainer.precision")}


@functools.cache
def _compose_base(experiment: str | None, ablation: str | None) -> DictConfig:
    """Returns what a run's config says where its arguments are silent, and what its ablation sweeps."""
    chosen = {"experiment": experiment, "ablation": ablation}
    overrides = [f"{group}={choice}" for group, choice in chosen.items() if choice is not None]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train", overrides, return_hydra_config=True)


def read_choices(arguments: Sequence[str]) -> dict[str, str]:
    """Returns the last value of each key that is given one value, without quotes."""
    plain = (o for o in parse(arguments) if not o.is_sweep_override() and not o.is_delete())
    values = {override.get_key_element(): (override, override.value()) for override in plain}
    return {key: v if isinstance(v, str) else o.get_value_element_as_str() for key, (o, v) in values.items()}


def parse(arguments: Iterable[str]) -> list[Override]:
    """Parses overrides, each text only once."""
    return [_parse_one(argument) for argument in arguments]


@functools.cache  # a parse takes milliseconds, and the runs of a table share most of their arguments
def _parse_one(argument: str) -> Override:
    return OverridesParser.create().parse_override(argument)
