"""Overrides as the shell hands them over, made into what Hydra's grammar reads as the same text.

Hydra gives a meaning to spaces, commas, brackets, =, ~, quotes and backslashes, and takes 007 for 7. Whatever it cannot
read is therefore quoted, and a path always is, unless quotes say that the user knows the grammar. Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString, Sweep
from hydra.errors import HydraException

from un.command.errors import CONFIG_FOLDER, UserError

RUNS = "paths.runs"
# Keys where nothing but a path, or any text, or null is right, and whether a sweep may vary it.
PATHS = {"data.path": True, "init_weights": True, "retrofit": True, "output": False, RUNS: False, "run": False}
PATHS |= {"input": False, "weights": False, "against": False, "shift.tatoeba.data.path": False}
SEARCH_PATH = "hydra.searchpath"
TEXT_MODULE = "_target_: un.translation."  # in configs of data that are text
SHRINK = "UN_SHRINK"  # environment variable
SWEPT = ("ablation", "hparams_search")  # groups that set what a sweep varies
RUN_FOLDER = "hydra.run.dir"  # Lightning gives it to further processes of a run, in quotes but as it is
# What commas part, but for those in quotes.
CHOICE = re.compile(r"""(?:^|,)\s*('(?:\\.|[^\\'])*'|"(?:\\.|[^\\"])*"|[^,]*?)\s*(?=,|\Z)""", re.DOTALL)


def quote_override(argument: str, is_sweep: bool = False) -> str:
    """Quotes the value of `key=value` where Hydra would not read it as it is typed; other arguments stay.

    Args:
        argument: of the command line.
        is_sweep: whether commas part the values of several runs. Otherwise they belong to a path, and also where a
            file or folder of that name is there, as run folders have commas in their names.
    """
    key, separator, typed = argument.partition("=")
    if not separator:
        return argument
    values = _list_values(key, typed) if is_sweep else [typed]
    return f"{key}={','.join(_quote_value(key, value, is_sweep) for value in values)}"


def search_folder(folder: str) -> str:
    """Returns the override that lets Hydra find config files in a folder, too, as its option `--config-dir` does."""
    path = Path(folder).absolute()
    if not path.is_dir():
        raise UserError(f"--config-dir {folder}: no such folder")
    return f"{SEARCH_PATH}=[{QuotedString(f'file://{path}', Quote.double).with_quotes()}]"


def check_overrides(overrides: Sequence[str]) -> None:
    """Checks what Hydra would take for something else: lists for config groups, and the folder of the runs."""
    with contextlib.suppress(HydraException):  # of the grammar; Hydra says it again
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            key, choices = override.key_or_group, override.value()
            if key.startswith(f"{RUNS}.") or (key == RUNS and not choices):
                raise UserError(f"{RUNS} must be the name of a folder: got {override.input_line}")
            if isinstance(choices, list) and (CONFIG_FOLDER / key).is_dir():
                wrong = [choice for choice in choices if not isinstance(choice, str)]
                if wrong:
                    raise UserError(f"{key} takes the names of its options, got {wrong[0]} in {choices}")


def check_one_run(overrides: Sequence[str], program: str) -> None:
    """Refuses what only a sweep does where one run is asked for: an ablation, or a search."""
    with contextlib.suppress(HydraException):
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if override.key_or_group in SWEPT and override.value() is not None and not override.is_delete():
                meant = shlex.join([program, "-m", *overrides])
                raise UserError(f"{override.input_line} is many runs, not one: python {meant}")


def add_experiment(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides with the first experiment on the chosen text, where they choose a text and no experiment.

    Everything else in configs/train.yaml is for images, and a model of images takes no text.
    """
    chosen: dict[str, Any] = {}
    with contextlib.suppress(HydraException):
        chosen = {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(list(overrides))}
    data = chosen.get("data")
    path = CONFIG_FOLDER / f"data/{data}.yaml"
    if not isinstance(data, str) or "experiment" in chosen or "task" in chosen or not path.is_file():
        return list(overrides)
    if TEXT_MODULE not in path.read_text(encoding="utf-8"):
        return list(overrides)
    experiments = sorted((CONFIG_FOLDER / "experiment").glob("*.yaml"))
    found = [one.stem for one in experiments if f"override /data: {data}\n" in one.read_text(encoding="utf-8")]
    return [*overrides, *(f"experiment={name}" for name in found[:1])]


def shrink(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides of a training that takes seconds, where the environment asks for it.

    So the commands of the documentation can be tried as they stand there.
    """
    names = [override.partition("=")[0] for override in overrides]
    return [*overrides, *(["debug=fast"] if os.environ.get(SHRINK) == "1" and "debug" not in names else [])]


def _list_values(key: str, typed: str) -> list[str]:
    """Returns the values of several runs as they are typed, or all in one where Hydra can tell them apart itself."""
    read, path = _parse(key, typed), key.lstrip("+")
    if path not in PATHS:
        return [typed] if read is not None else CHOICE.findall(typed)
    is_one = not PATHS[path] or os.path.exists(os.path.expanduser(typed)) or _is_function(read)
    return [typed] if is_one else CHOICE.findall(typed)


def _quote_value(key: str, value: str, is_sweep: bool) -> str:
    override, is_path = _parse(key, value), key.lstrip("+") in PATHS
    if key == RUN_FOLDER and override is None:
        value = value.removeprefix('"').removesuffix('"')
    if override is not None and _is_meant(override, value, is_path, is_sweep):
        return value
    is_home = is_path and (value == "~" or value.startswith("~/"))  # which a shell replaces in `a=~` only
    quoted = QuotedString(os.path.expanduser(value) if is_home else value, Quote.double).with_quotes()
    return value if _parse(key, quoted) is None else quoted


def _is_meant(override: Override, value: str, is_path: bool, is_sweep: bool) -> bool:
    """Tells whether what Hydra reads is what was typed, or what only someone who knows Hydra types."""
    read = override._value
    if isinstance(read, str):
        return read == value
    known = read is None or isinstance(read, QuotedString) or (is_sweep and _is_function(override))
    return known or not is_path


def _is_function(override: Override | None) -> bool:
    """Tells whether a value is a sweep such as choice(a,b), not a plain list of choices."""
    value = None if override is None else override._value
    return isinstance(value, Sweep) and not (isinstance(value, ChoiceSweep) and value.simple_form)


def _parse(key: str, value: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        return None
