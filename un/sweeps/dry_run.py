"""What starting some runs would take: what is done, what is missing here, how long it may last, and the commands."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from un.command.errors import CONFIG_FOLDER, EXTRAS
from un.reports.result import read_result
from un.sweeps.gpus import list_gpus
from un.sweeps.run_names import PlannedRun

EMBEDDED = ("sklearn-digits", "phrasebook")  # values of data.path that name no folder
DURATION = re.compile(r"[^.;,()#]*\b(?:minutes?|hours?|days?)\b[^.;,()]*")
SECONDS_PER_HOUR = 3600


def describe_runs(runs: Sequence[PlannedRun], commands: bool = False) -> str:
    """Returns the status of each run, what the missing ones need, and how long they may take.

    Args:
        runs: In the order in which they would start.
        commands: Adds a command for each missing run.
    """
    missing = [run for run in runs if run.find_result() is None]
    lines = [f"{run.status:<12} {run.folder}" for run in runs]
    lines.append(f"{len(runs)} runs, {len(runs) - len(missing)} done")
    for experiment in dict.fromkeys(run.key[0] for run in missing):
        chosen = [run for run in missing if run.key[0] == experiment]
        lines.append(f"{experiment}: {len(chosen)} to run, {estimate(chosen)}")
        lines += [f"{experiment}: {problem}" for problem in list_problems(chosen[0])]
    if commands:
        lines += [write_command(run) for run in missing]
    return "\n".join(lines)


def write_command(run: PlannedRun) -> str:
    """Returns what starts one run alone, to be pasted into a shell."""
    own = [argument for argument in run.arguments if not argument.lstrip("+~").startswith(("hydra.", "hydra/"))]
    is_swept = any(argument.startswith("ablation=") for argument in own)  # its values are all among the arguments
    return shlex.join(["python", "train.py", *(["-m"] if is_swept else []), *own])


def estimate(runs: Sequence[PlannedRun]) -> str:
    """Returns how long missing runs of one experiment may take, judging by its finished ones, or else by its recipe."""
    experiment = runs[0].folder.parents[1]
    seconds = [read_result(path).wall_time_seconds for path in experiment.glob("*/seed=*/result.json")]
    if seconds:
        hours = len(runs) * mean(seconds) / SECONDS_PER_HOUR
        return f"time by earlier runs: about {hours:.1f} hours one after the other"
    recipe = CONFIG_FOLDER / f"experiment/{experiment.name}.yaml"
    comments = [line for line in recipe.read_text().splitlines() if line.startswith("#")] if recipe.is_file() else []
    found = [match.group().strip() for line in comments if (match := DURATION.search(line))]
    return f"time by the recipe: {found[0]} each" if found else "time by earlier runs: not known"


def list_problems(run: PlannedRun) -> Iterator[str]:
    """Yields what a run would need that is not on this machine."""
    GlobalHydra.instance().clear()
    own = [argument for argument in run.arguments if not argument.lstrip("+~").startswith(("hydra.", "hydra/"))]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config: Any = compose("train", own)
    if OmegaConf.is_missing(config.data, "path"):
        yield "data.path is missing: say where the data are"
    elif config.data.path not in (None, *EMBEDDED) and not os.path.isdir(os.path.expanduser(str(config.data.path))):
        place = Path(str(config.data.path)).absolute()
        yield f"data.path={config.data.path} is no folder here ({place}); as a hub id it is downloaded at the first run"
    if config.trainer.accelerator in ("gpu", "cuda") and not list_gpus():
        yield f"trainer.accelerator={config.trainer.accelerator}: there is no GPU on this machine"
    packages, command = EXTRAS["translation"]
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if str(config.data._target_).startswith("un.translation.") and absent:
        yield f"{absent[0]} is not installed: {command}"
