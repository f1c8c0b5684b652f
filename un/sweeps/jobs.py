"""What a launcher calls for each run of a sweep, in this process or in one of its own. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from un.command import signals
from un.command.cli import ReportedError, prepare_process, report_error
from un.command.console import log_to_files
from un.command.errors import CONFIG_FOLDER
from un.command.overrides import SEARCH_PATH
from un.sweeps.gpus import VISIBLE, list_gpus, take_gpu
from un.training.start import start_run

ENTRY_POINT = CONFIG_FOLDER.parent / "train.py"


def start_job(config: DictConfig) -> float | None:
    """Runs one composed config of a sweep and prints its error, if it ends with one.

    Raises:
        ReportedError: The run failed and its error was printed; or, in a process of the launcher's own, a signal asked
            it to stop, which ends this run and all later ones.
        StoppedError: A signal asked the process of the whole sweep to stop.
    """
    prepare_process()
    is_own_process = not signals.is_listening()
    if is_own_process:
        choose_gpu(config)
    if is_own_process and signals.is_stopping():
        raise ReportedError("stopped before it began")
    with _act_as_command(), signals.listening():
        try:
            return start_run(config)
        except signals.StoppedError as stop:
            log_to_files(str(stop))
            if not is_own_process:
                raise
            print(stop, file=sys.stderr)
            signals.hand_on()
            raise ReportedError(str(stop)) from None
        except Exception as error:
            report_error(error)
            raise ReportedError(str(error)) from None


def choose_gpu(config: DictConfig) -> None:
    """Gives a process of a parallel sweep a GPU of its own, where there are several and the run takes one."""
    if config.trainer.devices == 1 and config.trainer.accelerator != "cpu" and "SLURM_JOB_ID" not in os.environ:
        gpu = take_gpu(list_gpus())
        if gpu is not None:
            os.environ[VISIBLE] = gpu


@contextlib.contextmanager
def _act_as_command() -> Iterator[None]:
    """Makes the process look like `python train.py <overrides of this run>`, and undoes it.

    For a run of several processes Lightning repeats the command line, which is that of the whole sweep or of a
    launcher's worker. It also leaves their addresses in the environment, where the next run would take them for its
    own, and stays connected to them after they have ended.
    """
    main, overrides = sys.modules["__main__"], HydraConfig.get().overrides
    search_path = [override for override in overrides.hydra if override.startswith(SEARCH_PATH)]
    arguments, spec, environment = sys.argv, main.__spec__, dict(os.environ)
    sys.argv, main.__spec__ = [str(ENTRY_POINT), *search_path, *overrides.task], None
    try:
        yield
    finally:
        sys.argv, main.__spec__ = arguments, spec
        os.environ.clear()
        os.environ.update(environment)
        distributed = sys.modules.get("torch.distributed")  # a finished run does not import torch
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
