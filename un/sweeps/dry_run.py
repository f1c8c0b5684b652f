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
DURATION = re.compile(r"[^].:;,()#]*\b(?:minutes?|hours?|days?)\b[^.:;,()]*")
SECONDS_PER_HOUR = 3600
KEPT = CONFIG_FOLDER.parent / "results/runs"


def describe_runs(
    runs: Sequence[PlannedRun], commands: bool = False, missing: Sequence[PlannedRun] | None = None
) -> str:
    """Returns the status of each run, what the missing ones need, and how long they may take.

    Args:
        runs: In the order in which they would start.
        commands: Adds a command for each missing run.
        missing: Those that would start; None for all without a result. Any other without one is recorded elsewhere.
    """
    missing = [run for run in runs if run.find_result() is None] if missing is None else missing
    starting, times = {run.folder for run in missing}, Times()
    lines = []
    for run in runs:
        is_recorded = run.folder not in starting and run.find_result() is None
        seconds = times.estimate(run) if run.folder in starting else None
        time = "" if seconds is None else f"{seconds / 60:5.1f} min  "
        lines.append(f"{'recorded' if is_recorded else run.status:<12} {time}{run.folder}")
    lines.append(f"{len(runs)} runs, {len(runs) - len(missing)} done")
    experiments = list(dict.fromkeys(run.key[0] for run in missing))
    for experiment in experiments:
        chosen = [run for run in missing if run.key[0] == experiment]
        lines.append(f"{experiment}: {len(chosen)} to run, {describe_time(chosen, times)}")
        lines += [f"{experiment}: {problem}" for problem in list_problems(chosen[0])]
    if len(experiments) > 1 and any(times.estimate(run) is not None for run in missing):
        lines.append(f"together: {len(missing)} to run, {describe_time(missing, times)}")
    if commands:
        lines += [write_command(run) for run in missing]
    return "\n".join(lines)


def write_command(run: PlannedRun) -> str:
    """Returns what starts one run alone, to be pasted into a shell."""
    own = [argument for argument in run.arguments if not argument.lstrip("+~").startswith(("hydra.", "hydra/"))]
    is_swept = any(argument.startswith("ablation=") for argument in own)  # its values are all among the arguments
    return shlex.join(["python", "train.py", *(["-m"] if is_swept else []), *own])


def describe_time(runs: Sequence[PlannedRun], times: Times) -> str:
    """Returns how long missing runs may take, judging by those that ended, or else by the recipe of the first."""
    known = [seconds for run in runs if (seconds := times.estimate(run)) is not None]
    if known:
        more = f", and {len(runs) - len(known)} of unknown time" if len(known) < len(runs) else ""
        return f"time by earlier runs: about {sum(known) / SECONDS_PER_HOUR:.1f} hours one after the other{more}"
    recipe = CONFIG_FOLDER / f"experiment/{runs[0].key[0]}.yaml"
    comments = [line for line in recipe.read_text().splitlines() if line.startswith("#")] if recipe.is_file() else []
    found = [match.group().strip() for line in comments if (match := DURATION.search(line))]
    return f"time by the recipe: {found[0]} each" if found else "time by earlier runs: not known"


class Times:
    """How long runs took that ended: here, or recorded in results/runs on another machine."""

    def __init__(self) -> None:
        self._known: dict[Path, dict[str, list[float]]] = {}

    def estimate(self, run: PlannedRun) -> float | None:
        """Returns seconds: the mean of the setting, or else of the experiment; of records where none ended here."""
        for root in (run.folder.parents[2], KEPT):
            found = self._read(root / run.key[0])
            if found:
                return mean(found.get(run.key[1]) or [seconds for group in found.values() for seconds in group])
        return None

    def _read(self, experiment: Path) -> dict[str, list[float]]:
        """Returns the seconds of an experiment's runs by setting."""
        if experiment not in self._known:
            found = self._known.setdefault(experiment, {})
            for path in experiment.glob("*/seed=*/result.json"):
                found.setdefault(path.parents[1].name, []).append(read_result(path).wall_time_seconds)
        return self._known[experiment]


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
