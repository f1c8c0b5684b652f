"""What all programs share: mistakes of the user end in one line on stderr and exit code 2."""

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
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from un.command import signals
from un.command.console import log_to_files
from un.command.errors import CONFIG_FOLDER, UserError, describe_error, is_user_error
from un.command.overrides import quote_override
from un.command.ranks import is_first_process

FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's variable; 1 shows the traceback of a mistake
ASKED = "UN_FULL_ERROR"  # what the user set it to, for the processes that one of ours starts after it has set it
WANTS_TRACEBACK = os.environ.get(ASKED, os.environ.get(FULL_ERROR)) == "1"
EXIT_CODE = 2
RUNS = "paths.runs"


class ReportedError(UserError):
    """A mistake in another process of a sweep, whose line was printed when its job ended."""


class CommandParser(argparse.ArgumentParser):
    """A command line whose mistakes are a UserError, where argparse prints its usage over them and ends the process."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UserError(f"{message}; --help shows what there is")


_failed_jobs: list[str] | None = None  # None outside the process that `run_main` runs in


def run_main(main: Callable[[], Any], sweep: Callable[[Sequence[str]], int | None] | None = None) -> None:
    """Calls a function made by `hydra.main` and ends the process.

    Args:
        main: the function.
        sweep: takes over where the command line has `-m`: gets the overrides, returns how many runs failed or, to leave
            the sweep to Hydra after all, None.
    """
    global _failed_jobs
    _failed_jobs = []
    prepare_process()
    arguments = sort_arguments(sys.argv[1:])
    is_sweep = arguments[:1] in (["-m"], ["--multirun"])
    sys.argv[1:] = [quote_override(argument, is_sweep) for argument in arguments]
    overrides = sys.argv[2:]
    is_plain_sweep = is_sweep and not any(text.startswith("-") for text in overrides)
    signals.forget()
    try:
        with answer_signals():
            check_arguments(sys.argv[1:])
            failed = sweep(overrides) if sweep is not None and is_plain_sweep else None
            if failed is None:
                os.environ[ASKED] = str(int(WANTS_TRACEBACK))
                os.environ[FULL_ERROR] = "1"  # Hydra then raises here instead of printing and leaving itself
                main()
    except ReportedError:
        sys.exit(EXIT_CODE)
    except Exception as error:
        if WANTS_TRACEBACK or not is_user_error(error):
            raise
        _print_error(error)
        sys.exit(EXIT_CODE)
    if failed or _failed_jobs:
        sys.exit(EXIT_CODE)


@contextlib.contextmanager
def answer_signals() -> Iterator[None]:
    """Ends what a signal stopped with one line, from the first process of a run.

    Raises:
        SystemExit: with the exit code of the signal; 0 in the other processes of a run, whose launchers take another
            code for a crash that the first process must be killed for.
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


def sort_arguments(arguments: list[str]) -> list[str]:
    """Moves `-m` to the front: behind an override, argparse takes the overrides after it for unknown arguments."""
    return sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))


def check_arguments(arguments: Sequence[str]) -> None:
    """Parses the command line as Hydra will, which would print its usage over the mistake and end the process itself.

    Raises:
        UserError: an unknown flag, one without its value, a list for a config group with anything but names in it, or
            what Hydra would make a wrong folder of before the config is checked.
    """
    parser = get_args_parser()
    parser.__class__ = CommandParser
    overrides = parser.parse_args(arguments).overrides
    with contextlib.suppress(HydraException):  # of the grammar; Hydra says it again
        for override in OverridesParser.create().parse_overrides(overrides):
            key, choices = override.key_or_group, override.value()
            if key.startswith(f"{RUNS}.") or (key == RUNS and not choices):
                raise UserError(f"{RUNS} must be the name of a folder: got {override.input_line}")
            if not isinstance(choices, list) or not (CONFIG_FOLDER / override.key_or_group).is_dir():
                continue
            wrong = [choice for choice in choices if not isinstance(choice, str)]
            if wrong:
                raise UserError(f"{override.key_or_group} takes the names of its options, got {wrong[0]} in {choices}")


@contextlib.contextmanager
def end_on_mistake() -> Iterator[None]:
    """Ends a program that is none of Hydra's with the line of a mistake."""
    try:
        yield
    except Exception as error:
        if WANTS_TRACEBACK or not is_user_error(error):
            raise
        print(f"error: {describe_error(error)}", file=sys.stderr)
        sys.exit(EXIT_CODE)


def read_count(text: str) -> int:
    """Reads an option that counts something, for argparse.

    Raises:
        argparse.ArgumentTypeError: not a whole number of at least 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Prints a job's mistake when the job ends; a sweep goes on with its other jobs and fails at the end.

    Hydra would add a line of its own to an exception that leaves a job of this process.
    """
    try:
        yield
    except signals.StoppedError as stop:
        log_to_files(str(stop))
        raise
    except Exception as error:
        log_to_files(traceback.format_exc())
        if WANTS_TRACEBACK or not is_user_error(error):
            raise
        _print_error(error)
        if _failed_jobs is None:
            raise ReportedError(str(error)) from None
        _failed_jobs.append(str(error))


def report_error(error: Exception) -> None:
    """Prints a mistake of the user as one line, a fault of the program as its traceback, which the log gets anyway."""
    log_to_files("".join(traceback.format_exception(error)))
    if WANTS_TRACEBACK or not is_user_error(error):
        traceback.print_exception(error)
    else:
        _print_error(error)


def _print_error(error: BaseException) -> None:
    print(f"error: {describe_error(error, _list_keys())}", file=sys.stderr)


def _list_keys() -> list[str]:
    """Returns every dotted key and group that can be overridden; nothing when the config itself is broken."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            config = compose(Path(sys.argv[0]).stem)
    except Exception:
        return []
    groups = [path.relative_to(CONFIG_FOLDER).as_posix() for path in CONFIG_FOLDER.rglob("*") if path.is_dir()]
    return [*groups, *_flatten_keys(config)]


def _flatten_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, config):
        yield f"{prefix}{key}"
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none():
            yield from _flatten_keys(node, f"{prefix}{key}.")
