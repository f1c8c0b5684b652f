"""Turns what a user can get wrong into one line; imports neither torch nor Lightning, so that errors come fast."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf.errors import GrammarParseError, InterpolationResolutionError, OmegaConfBaseException

CONFIG_FOLDER = Path(__file__).parents[2] / "configs"
# Errors of these kinds name a wrong input. Everything else is a fault of the program and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, HydraException, OmegaConfBaseException)
USER_ERROR_NAMES = ("MisconfigurationException",)  # of Lightning, which is not imported here
# What torch.distributed raises where another process is gone: NCCL and its helpers errors of these names, gloo a
# RuntimeError that quotes its source file.
LOST_PROCESS_NAMES = ("DistBackendError", "DistNetworkError", "DistStoreError")
LOST_PROCESS_SOURCE = "/gloo/"
LOG_ERROR = "Unable to configure"  # how logging's error begins where it cannot open train.log
WORKER_ERROR = "Caught ValueError in DataLoader worker process"  # how torch's error begins
# Optional packages: extra of pyproject.toml -> what its modules are called, and the command that installs it.
EXTRAS = {
    "translation": (("fairseq", "sacrebleu", "sacremoses", "subword_nmt", "babel"), "make translation"),
    "export": (("onnx", "onnxruntime", "onnxscript"), "pip install -e '.[export]'"),
}
# Hydra's plugins: choice -> the extra that brings it.
PLUGINS = {
    "hydra/launcher/submitit_slurm": "slurm",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/sweeper/optuna": "optuna",
}
INTERPOLATION_ERRORS = (GrammarParseError, InterpolationResolutionError)
UNEXPECTED_ARGUMENT = "unexpected keyword argument"


class UserError(ValueError):
    """A mistake of the user; the message is one line with the offending value and what is allowed."""


def suggest(name: str, allowed: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the nearest allowed name, or an empty string."""
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def is_user_error(error: BaseException) -> bool:
    """Tells whether an error is the user's to correct, so that one line is enough."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return is_user_error(error.__cause__)
    known = isinstance(error, USER_ERRORS) or type(error).__name__ in USER_ERROR_NAMES
    return known or _is_lost_process(error) or (isinstance(error, TypeError) and UNEXPECTED_ARGUMENT in str(error))


def _is_lost_process(error: BaseException) -> bool:
    """Tells whether this process is sound and another one of its run is not."""
    quotes_gloo = isinstance(error, RuntimeError) and LOST_PROCESS_SOURCE in str(error)
    return quotes_gloo or type(error).__name__ in LOST_PROCESS_NAMES


def describe_error(error: BaseException, keys: Iterable[str] = ()) -> str:
    """Returns one line for an error.

    Args:
        error: any exception for which `is_user_error` holds.
        keys: dotted names of the config, from which the nearest is suggested for an unknown one.
    """
    if isinstance(error, MissingConfigException):
        return _describe_missing_choice(error)
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        key = re.search(r"full_key: (\S+)", str(error))
        return (f"{key.group(1)}: " if key else "") + describe_error(error.__cause__, keys)
    if isinstance(error, ImportError):
        return _describe_missing_import(error)
    if _is_lost_process(error):
        return "another process of this run ended or does not answer; run the same command to resume"
    if str(error).startswith(LOG_ERROR) and isinstance(error.__cause__, OSError):
        return describe_error(error.__cause__, keys)
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    sweep = re.search(r"Ambiguous value for argument '(.+?)'\n", str(error))
    if sweep:
        return (
            f"{sweep.group(1)} is a run for each value: add -m; one run takes a list in brackets, or a text in quotes"
        )
    unknown = re.search(r"Could not override '([^']+)'", str(error))
    if unknown:
        name = unknown.group(1)  # which other choices of groups than the default ones may lack
        return f"there is no config key or group '{name}'" + suggest(name, (key for key in keys if key != name))
    cause = f" ({error.__cause__})" if isinstance(error.__cause__, OmegaConfBaseException) else ""
    if any(isinstance(one, INTERPOLATION_ERRORS) for one in (error, error.__cause__)):
        cause += "; ${...} stands for another value: rename a path that holds it, or make a link to it"
    text = str(error)
    if text.startswith(WORKER_ERROR):  # with the traceback of a data loader's process, which ends with the error
        text = text.rstrip().splitlines()[-1].partition(": ")[2]
    return " ".join((text + cause).split()) or type(error).__name__


def _describe_missing_import(error: ImportError) -> str:
    """Returns the line for a module that cannot be imported, with how to install it where it belongs to an extra."""
    if isinstance(error.__cause__, ImportError) and error.name is None and str(error).startswith("Error loading"):
        return _describe_missing_import(error.__cause__)  # what Hydra met behind a `_target_`
    text = " ".join(str(error).split())
    package = (error.name or "").partition(".")[0]
    for extra, (packages, command) in EXTRAS.items():
        if isinstance(error, ModuleNotFoundError) and package in packages:
            return f"{package}, which belongs to the extra '{extra}', is not installed: {command}"
    return text


def _describe_missing_choice(error: MissingConfigException) -> str:
    """Returns the line for a group that has no option of that name."""
    name = error.missing_cfg_file or ""
    if not error.options:  # one of several choices, as in logger=[csv,x]
        found = re.search(r"Could not (?:find|load) '([^']+)'", str(error))
        name = found.group(1) if found else ""
    if name in PLUGINS:
        extra = PLUGINS[name]
        return f"{name} belongs to the extra '{extra}', which is not installed: pip install -e '.[{extra}]'"
    group, _, choice = name.rpartition("/")
    options = sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml")) if group else []
    if not options:
        return " ".join(str(error).split())
    return f"{group}={choice} is unknown{suggest(choice, options) or '.'} Allowed: {', '.join(options)}"
