"""Sweeps: what `train.py -m <arguments>` would run, and the start of what is still missing. Imports no torch."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
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
from un.sweeps.gpus import list_gpus
from un.sweeps.jobs import start_job
from un.sweeps.run_names import PlannedRun, check_one_run, list_params
from un.training.run_folder import RunFolder

CONFIG_NAME = "train"
log = logging.getLogger(__name__)


def expand(arguments: Sequence[str]) -> list[PlannedRun]:
    """Lists what `train.py -m <arguments>` would run, in its order, without running anything.

    Args:
        arguments: overrides in Hydra's grammar, including sweeps such as `norm=un,layernorm` and `ablation=<name>`.

    Raises:
        UserError: The ablation makes no sense for the experiment, a value is out of range, or the sweeper chooses its
            runs as it goes.
        HydraException: Hydra refuses an override.
        ValueError: A result.json is damaged.
    """
    with _open_configs() as loader:
        sweep = _compose_sweep(loader, arguments)
        if not _is_listable(sweep):
            raise UserError(f"{sweep.hydra.sweeper._target_} chooses its runs as it goes: they cannot be listed")
        runs: dict[Path, PlannedRun] = {}  # runs that differ only in where or how they run are one
        for overrides, job in _compose_jobs(loader, sweep):
            folder = Path(job.hydra.sweep.dir) / job.hydra.sweep.subdir
            run = PlannedRun(folder, (*sweep.hydra.overrides.hydra, *overrides), force=bool(job.force))
            if folder in runs:
                check_one_run(folder, runs[folder].arguments, run.arguments)
            elif run.find_result() is not None and not run.force:
                _check_finished(run, job)
            runs[folder] = run
    return list(runs.values())


def launch(runs: Sequence[PlannedRun]) -> int:
    """Starts the runs of one command that have no result yet, with the launcher that the command names.

    A run that fails does not stop the others; its error is printed when it ends. A launcher whose worker is killed
    gives up on all its runs: those that have not begun are handed to a new one.

    Returns:
        How many of the started runs failed; a diverged run did not.

    Raises:
        StoppedError: A signal stopped the run or, where the launcher has processes on this machine, the runs.
    """
    waiting = [run for run in runs if run.force or run.find_result() is None]
    failed = 0
    prepare_process()
    with signals.listening(), _open_configs() as loader:
        while waiting:
            if signals.is_stopping():
                raise signals.make_stop()
            try:
                return failed + _launch_batch(loader, waiting)
            except Exception as error:  # each launcher's library raises its own
                log.error("the launcher stopped: %s: %s", type(error).__name__, " ".join(str(error).split()))
                begun = [run for run in waiting if run.status != "missing"]
                if not begun:
                    return failed + len(waiting)
                failed += sum(run.find_result() is None for run in begun)
                waiting = [run for run in waiting if run not in begun]
    return failed


def run_sweep(arguments: Sequence[str]) -> int | None:
    """Does what `train.py -m <arguments>` asks for: runs what is missing and prints a table of all runs.

    Returns:
        How many runs failed; None, and nothing was done, where the sweeper chooses its runs as it goes.
    """
    with _open_configs() as loader:
        if not _is_listable(_compose_sweep(loader, arguments)):
            return None
    runs = expand(arguments)
    try:
        return launch(runs)
    finally:
        print(summarize(runs))


def summarize(runs: Sequence[PlannedRun]) -> str:
    """Returns a table with one line per run: its name, status, minutes and test metrics, and the totals below."""
    import pandas as pd  # takes half a second

    rows: list[dict[str, Any]] = []
    for run in runs:
        row: dict[str, Any] = {"run": "/".join(run.folder.parts[-3:]), "status": run.status}
        if (result := run.find_result()) is not None:
            row["minutes"] = result.wall_time_seconds / 60
            row |= {name: value for name, value in result.metrics.items() if name.startswith("test/")}
        rows.append(row)
    table = pd.DataFrame(rows)
    table["run"] = table["run"].str.ljust(table["run"].str.len().max())
    counts = Counter(row["status"] for row in rows)
    totals = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    hint = "" if counts.keys() <= {"finished", "diverged"} else "; train.log in a folder without a result says why"
    formatted = table.to_string(index=False, na_rep="", float_format="{:.4g}".format)
    return f"{formatted}\n{len(runs)} runs: {totals}{hint}"


@contextlib.contextmanager
def _open_configs() -> Iterator[ConfigLoader]:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3", job_name=CONFIG_NAME):
        yield GlobalHydra.instance().config_loader()


def _compose_sweep(loader: ConfigLoader, arguments: Sequence[str]) -> DictConfig:
    return loader.load_configuration(CONFIG_NAME, list(arguments), RunMode.MULTIRUN)


def _is_listable(sweep: DictConfig) -> bool:
    return sweep.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}")


def _compose_jobs(loader: ConfigLoader, sweep: DictConfig) -> Iterator[tuple[list[str], DictConfig]]:
    """Yields the overrides and the config of every job; jobs that differ in their seed alone are composed once."""
    parser = OverridesParser.create(config_loader=loader)
    arguments = parser.parse_overrides([*list_params(sweep), *sweep.hydra.overrides.task])
    (jobs,) = BasicSweeper.split_arguments(arguments, None)
    composed: dict[tuple[str, ...], DictConfig] = {}
    for overrides in jobs:
        others = tuple(override for override in overrides if not override.startswith("seed="))
        if others not in composed:
            composed[others] = loader.load_sweep_config(sweep, list(others))
            check_ablation(composed[others])
            check_config(composed[others])
        job = composed[others]
        for seed in parser.parse_overrides([override for override in overrides if override not in others]):
            job.seed = seed.value()
        yield overrides, job


def _check_finished(run: PlannedRun, job: DictConfig) -> None:
    """Checks that a run with a result was trained on the data asked for, and says what it did not record."""
    folder = RunFolder(run.folder)
    folder.check_data(OmegaConf.select(job, "data.path"))
    groups = {group: job[group] for group in ("logger", "callbacks", "trainer") if job[group] is not None}
    asked = {group: OmegaConf.to_container(node, resolve=True) for group, node in groups.items()}
    if unrecorded := folder.list_unrecorded(asked):
        log.warning("%s is %s without %s: force=true would record it", run.folder, run.status, ", ".join(unrecorded))


def _launch_batch(loader: ConfigLoader, runs: Sequence[PlannedRun]) -> int:
    """Hands runs to a new launcher; returns how many failed."""
    common = [argument for argument in runs[0].arguments if all(argument in run.arguments for run in runs)]
    sweep = _compose_sweep(loader, common)
    launcher_config = sweep.hydra.launcher
    is_joblib = launcher_config._target_.endswith(".JoblibLauncher")
    if is_joblib:
        from joblib import effective_n_jobs

        # joblib divides the cores among its workers: one without a run would waste its share.
        # Where there are several GPUs each worker has one, unless the runs are on the CPU.
        gpus = len(list_gpus()) if sweep.trainer.accelerator != "cpu" else 0
        most = gpus if gpus > 1 else len(runs)
        launcher_config.n_jobs = min(effective_n_jobs(launcher_config.n_jobs), len(runs), most)
    context = HydraContext(config_loader=loader, callbacks=Callbacks(sweep))
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=start_job, config=sweep)
    with signals.deferring(forwards=True) if is_joblib else contextlib.nullcontext():
        jobs = launcher.launch([_drop_settings(run.arguments) for run in runs], initial_job_idx=0)
    return sum(job.status != JobStatus.COMPLETED for job in jobs)


def _drop_settings(arguments: Sequence[str]) -> list[str]:
    """Returns the overrides of a run without those of Hydra itself, such as the launcher."""
    return [argument for argument in arguments if not argument.lstrip("+~").startswith(("hydra.", "hydra/"))]
