"""The command line of every program; a mistake of the user ends it with one line and exit code 2."""

import argparse
import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from un.command import signals
from un.command.console import log_to_files
from un.command.errors import CONFIG_FOLDER, UserError, describe_error, is_user_error
from un.command.overrides import (
    add_experiment,
    check_one_run,
    check_overrides,
    quote_override,
    search_folder,
    shrink,
)
from un.command.ranks import is_first_process

WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"  # Hydra's variable
EXIT_CODE = 2
# Options of Hydra: those that lead to other configs than ours, with what to do instead.
REFUSED = {
    "config_path": "add configs of your own to ours with --config-dir=<folder>",
    "config_name": "choose among our configs with experiment=<name>",
    "experimental_rerun": "run the same command to resume a run, with force=true to start it over",
}
# Those that ask for an answer, not for a run.
ANSWERED = ("help", "hydra_help", "cfg", "info", "shell_completion")


class ReportedError(UserError):
    """A mistake in a job of a sweep, whose line was printed when the job ended."""


class CommandParser(argparse.ArgumentParser):
    """A command line whose mistakes are UserErrors; argparse itself would print its usage above the line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def run_command(
    name: str, task: Callable[[DictConfig], Any], sweep: Callable[[Sequence[str]], int | None] | None = None
) -> None:
    """Does what the command line asks for: a run, a sweep, or an answer of Hydra's such as `--help`.

    Args:
        name: of the program and of its config in configs/.
        task: takes the composed config of one run.
        sweep: takes over where the command line has `-m`: gets the overrides, returns how many runs failed or, to leave
            the sweep to Hydra after all, None.
    """
    prepare_process()
    with answer_signals(), end_on_mistake():
        parser = CommandParser(parents=[get_args_parser()], add_help=False)
        options = parser.parse_intermixed_args(sys.argv[1:])
        for option, instead in REFUSED.items():
            if getattr(options, option):
                raise UserError(f"--{option.replace('_', '-')} is not supported: {instead}")
        options.multirun = options.multirun or "hydra.mode=MULTIRUN" in options.overrides
        options.overrides = [quote_override(text, options.multirun) for text in options.overrides]
        if options.config_dir is not None:
            options.overrides.append(search_folder(options.config_dir))
        if sweep is not None:  # the program trains
            options.overrides = shrink(add_experiment(options.overrides))
        check_overrides(options.overrides)
        is_answer = any(getattr(options, option) for option in ANSWERED)
        # Further processes of one run of a sweep get its overrides without the option.
        if not (options.multirun or is_answer) and is_first_process():
            check_one_run(options.overrides, f"{name}.py")
        is_sweep = options.multirun and not is_answer
        failed = sweep(options.overrides) if sweep is not None and is_sweep else None
        if failed is None:
            _run_hydra(name, task, parser, options)
        elif failed:
            sys.exit(EXIT_CODE)


def _run_hydra(
    name: str, task: Callable[[DictConfig], Any], parser: CommandParser, options: argparse.Namespace
) -> None:
    """Does what `hydra.main` does, except that errors are raised, not printed."""

    def run_job(config: DictConfig) -> Any:
        with end_on_mistake():  # Hydra would add a line of its own to an exception that leaves a job
            return task(config)

    overrides = options.overrides
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3", job_name=name):
        hydra: Any = GlobalHydra.instance().hydra
        if options.help:
            hydra.app_help(name, parser, options)
        elif options.hydra_help:
            hydra.hydra_help(name, parser, options)
        elif options.cfg:
            hydra.show_cfg(name, overrides, options.cfg, options.package, options.resolve)
        elif options.info:
            hydra.show_info(options.info, name, overrides)
        elif options.shell_completion:
            hydra.shell_completion(name, overrides)
        elif options.multirun:
            hydra.multirun(name, run_job, overrides)
        else:
            hydra.run(name, run_job, overrides)


@contextlib.contextmanager
def answer_signals() -> Iterator[None]:
    """Ends what a signal stopped with one line, from the first process of a run, and the exit code of the signal.

    The other processes end with 0: their launchers take another code for a crash, for which they kill the first.
    """
    with signals.listening():
        try:
            yield
        except signals.StoppedError as stop:
            if not is_first_process():
                sys.exit(0)
            print(stop, file=sys.stderr)
            signals.hand_on()
            sys.exit(stop.code)


def prepare_process() -> None:
    """Sets what libraries read at their import, for this process and those it starts.

    OpenMP threads that spin at every barrier cost a tenth of the time on an idle machine when they sleep instead, and
    are up to nine times slower on a busy one when they do not.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, would print a traceback per line


def read_count(text: str) -> int:
    """Reads an option that counts something, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


@contextlib.contextmanager
def end_on_mistake() -> Iterator[None]:
    """Ends the process at an error, after one line for a mistake of the user or a traceback for any other."""
    try:
        yield
    except signals.StoppedError as stop:
        log_to_files(str(stop))
        raise
    except Exception as error:
        report_error(error)
        sys.exit(EXIT_CODE if _is_one_line(error) else 1)


def report_error(error: Exception) -> None:
    """Prints a mistake of the user as one line and any other error as its traceback; the log gets the traceback."""
    log_to_files("".join(traceback.format_exception(error)))
    if _is_one_line(error):
        print(f"error: {describe_error(error, _list_keys())}", file=sys.stderr)
    else:
        traceback.print_exception(error)


def _is_one_line(error: Exception) -> bool:
    return is_user_error(error) and not WANTS_TRACEBACK


def _list_keys() -> Iterator[str]:
    """Yields every dotted key and group that can be overridden; nothing when the config itself is broken."""
    GlobalHydra.instance().clear()
    with contextlib.suppress(Exception), initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        yield from _flatten_keys(OmegaConf.to_container(compose(Path(sys.argv[0]).stem)))
        yield from (path.relative_to(CONFIG_FOLDER).as_posix() for path in CONFIG_FOLDER.rglob("*") if path.is_dir())


def _flatten_keys(config: Any, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flatten_keys(value, f"{prefix}{key}.")
