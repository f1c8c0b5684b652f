"""Sweeps: what `train.py -m <arguments>` would run, and the start of what is still missing. Imports no torch."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from un.command import signals
from un.command.checks import check_ablation, check_config
from un.command.cli import prepare_process
from un.command.errors import CONFIG_FOLDER, UserError
from un.reports.result import read_result
from un.sweeps.jobs import start_job
from un.sweeps.run_names import check_one_run
from un.training.run_folder import RunFolder

CONFIG_NAME = "train"
Status = Literal["finished", "diverged", "interrupted", "failed", "missing"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        folder: the run folder; relative to the working directory where `paths.runs` is.
        arguments: of `train.py` for this run alone, Hydra's own settings (such as the launcher) first.
        status: finished and diverged runs have a result; an interrupted run began to train and was killed, broke off or
            is still running; a failed run never began.
        seconds: wall time of a run with a result.
    """

    folder: Path
    arguments: tuple[str, ...]
    status: Status
    seconds: float | None

    @property
    def is_done(self) -> bool:
        """Whether the run has a result; a diverged run has one."""
        return self.status in ("finished", "diverged")

    @property
    def is_forced(self) -> bool:
        """Whether the run is to start over although it has a result."""
        return any(argument.lower() in ("force=true", "force=1") for argument in self.arguments)


def expand(arguments: Sequence[str]) -> list[PlannedRun]:
    """Lists what `train.py -m <arguments>` would run, in its order, without running anything.

    Args:
        arguments: overrides in Hydra's grammar, sweeps such as `norm=un,layernorm` and `ablation=<name>` included.

    Raises:
        UserError: the ablation makes no sense for the experiment, a value is out of range, or the sweeper chooses its
            runs while it runs.
        HydraException: an override which Hydra refuses.
        ValueError: a damaged result.json.
    """
    with _open_hydra() as hydra:
        sweep = hydra.compose_config(CONFIG_NAME, list(arguments), RunMode.MULTIRUN)
        if not _is_listable(sweep):
            raise UserError(f"{sweep.hydra.sweeper._target_} chooses its runs while it runs: they cannot be listed")
        runs: dict[Path, PlannedRun] = {}  # runs which differ in nothing but where or how they run are one
        for overrides, folder, job in _find_folders(hydra, sweep):
            run = refresh(PlannedRun(folder, (*sweep.hydra.overrides.hydra, *overrides), "missing", None))
            if folder in runs:
                check_one_run(folder, runs[folder].arguments, run.arguments)
            elif run.is_done and not run.is_forced:
                _check_finished(run, job)
            runs[folder] = run
    return list(runs.values())


def refresh(run: PlannedRun) -> PlannedRun:
    """Looks into the run's folder again.

    Raises:
        ValueError: a damaged result.json.
    """
    folder = RunFolder(run.folder)
    if not folder.result.exists():
        return replace(run, status=folder.status, seconds=None)
    result = read_result(folder.result)
    status: Status = "finished" if result.status == "finished" else "diverged"
    return replace(run, status=status, seconds=result.wall_time_seconds)


def launch(runs: Iterable[PlannedRun]) -> int:
    """Starts those runs which have no result yet, with the launcher that their arguments name.

    A run that fails does not stop the others; its error is printed when it ends.

    Returns:
        How many of the started runs failed; a diverged run did not.

    Raises:
        StoppedError: a signal stopped the run or, of a launcher with processes on this machine, the runs.
    """
    groups: dict[tuple[str, ...], list[PlannedRun]] = {}
    for run in map(refresh, runs):
        if not run.is_done or run.is_forced:
            groups.setdefault(tuple(filter(_is_setting, run.arguments)), []).append(run)
    prepare_process()
    with signals.listening():
        return sum(_launch_group(settings, group) for settings, group in groups.items())


def run_sweep(arguments: Sequence[str]) -> int | None:
    """Does what `train.py -m <arguments>` asks for: runs what is missing and prints a table of all runs.

    Returns:
        How many runs failed; None, and nothing was done, where a sweeper that chooses its runs itself is asked for.
    """
    with _open_hydra() as hydra:
        if not _is_listable(hydra.compose_config(CONFIG_NAME, list(arguments), RunMode.MULTIRUN)):
            return None
    runs = expand(arguments)
    try:
        return launch(runs)
    finally:
        print(summarize(map(refresh, runs)))


def estimate_seconds(runs: Sequence[PlannedRun]) -> float | None:
    """Estimates how long the runs without a result take one after the other, by the mean of those with one.

    Returns:
        None where nothing was measured.
    """
    known = [run.seconds for run in runs if run.seconds is not None]
    return sum(known) / len(known) * sum(not run.is_done for run in runs) if known else None


def summarize(runs: Iterable[PlannedRun]) -> str:
    """Returns a table with one line per run: its name, status, minutes and test metrics, and the totals below."""
    import pandas as pd  # costs half a second

    runs, rows = list(runs), []
    for run in runs:
        metrics = read_result(run.folder / "result.json").metrics if run.is_done else {}
        tests = {name: value for name, value in metrics.items() if name.startswith("test/")}
        minutes = math.nan if run.seconds is None else run.seconds / 60
        rows.append({"run": "/".join(run.folder.parts[-3:]), "status": run.status, "minutes": minutes, **tests})
    table = pd.DataFrame(rows)
    counts = table["status"].value_counts()
    totals = ", ".join(f"{count} {status}" for status, count in counts.items())
    width = table["run"].str.len().max()
    formatted = table.to_string(
        index=False, na_rep="", float_format="{:.4g}".format, formatters={"run": f"{{:{width}}}".format}
    )
    why = "" if all(run.is_done for run in runs) else "; train.log in a folder without a result says why"
    return f"{formatted}\n{len(runs)} runs: {totals}{why}"


@contextlib.contextmanager
def _open_hydra() -> Iterator[Hydra]:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3", job_name=CONFIG_NAME):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        yield hydra


def _is_listable(sweep: DictConfig) -> bool:
    return sweep.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}")


def _split_sweep(hydra: Hydra, sweep: DictConfig) -> list[list[str]]:
    """Returns the overrides of every job, as Hydra's sweeper does: those of the command line win over the params."""
    params = [f"{key}={value}" for key, value in (sweep.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=hydra.config_loader)
    overrides = parser.parse_overrides([*params, *sweep.hydra.overrides.task])
    (jobs,) = BasicSweeper.split_arguments(overrides, None)
    return jobs


def _check_finished(run: PlannedRun, job: DictConfig) -> None:
    """Checks that a run with a result is of the data that are asked for, and tells what it did not record."""
    folder = RunFolder(run.folder)
    folder.check_data(OmegaConf.select(job, "data.path"))
    groups = {group: job[group] for group in ("logger", "callbacks", "trainer") if job[group] is not None}
    asked = {group: OmegaConf.to_container(node, resolve=True) for group, node in groups.items()}
    if unrecorded := folder.list_unrecorded(asked):
        log.warning("%s is %s without %s: force=true would record it", run.folder, run.status, ", ".join(unrecorded))


def _find_folders(hydra: Hydra, sweep: DictConfig) -> Iterator[tuple[list[str], Path, DictConfig]]:
    """Yields overrides, run folder and config of every job; those which differ in their seed are composed once."""
    composed: dict[tuple[str, ...], DictConfig] = {}
    for overrides in _split_sweep(hydra, sweep):
        others = tuple(override for override in overrides if not override.startswith("seed="))
        if others not in composed:
            composed[others] = hydra.config_loader.load_sweep_config(sweep, list(others))
            check_ablation(composed[others])
            check_config(composed[others])
        job = composed[others]
        seeds = [override for override in overrides if override not in others]
        for seed in OverridesParser.create().parse_overrides(seeds):
            job.seed = seed.value()
        yield overrides, Path(job.hydra.sweep.dir) / job.hydra.sweep.subdir, job


def _is_setting(argument: str) -> bool:
    """Tells Hydra's own settings from the overrides of a run."""
    return argument.lstrip("+~").startswith(("hydra.", "hydra/"))


def _launch_group(settings: Sequence[str], runs: Sequence[PlannedRun]) -> int:
    """Hands runs to one launcher; returns how many failed.

    A launcher whose worker was killed gives up all its runs: those not yet started are handed to it again.
    """
    failed, waiting = 0, list(runs)
    with _open_hydra() as hydra:
        common = [argument for argument in waiting[0].arguments if all(argument in run.arguments for run in waiting)]
        sweep = hydra.compose_config(CONFIG_NAME, list(dict.fromkeys([*settings, *common])), RunMode.MULTIRUN)
        while waiting:
            if signals.is_stopping():
                raise signals.make_stop()
            batch, waiting = waiting, []
            overrides = [[argument for argument in run.arguments if not _is_setting(argument)] for run in batch]
            try:
                launcher = _build_launcher(hydra, sweep, len(batch))
                with signals.deferring(forwards=True) if _is_joblib(sweep) else contextlib.nullcontext():
                    returns = launcher.launch(overrides, initial_job_idx=0)
            except Exception as error:  # whatever a launcher's library raises
                log.error("the launcher stopped: %s: %s", type(error).__name__, " ".join(str(error).split()))
                after = [refresh(run) for run in batch]
                waiting = [run for run in after if run.status == "missing"]
                failed += sum(run.status in ("interrupted", "failed") for run in after)
                if len(waiting) == len(batch):
                    return failed + len(waiting)
            else:
                failed += sum(job.status != JobStatus.COMPLETED for job in returns)
    return failed


def _is_joblib(sweep: DictConfig) -> bool:
    return sweep.hydra.launcher._target_.endswith(".JoblibLauncher")


def _build_launcher(hydra: Hydra, sweep: DictConfig, num_runs: int) -> Any:
    """Builds the launcher; joblib gets no more workers than runs, since it gives each worker its share of the cores."""
    launcher = sweep.hydra.launcher
    if _is_joblib(sweep):
        from joblib import effective_n_jobs

        launcher.n_jobs = min(effective_n_jobs(launcher.n_jobs), num_runs)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(sweep))
    return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=start_job, config=sweep)
