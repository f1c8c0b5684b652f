"""The folder of a run: its name, what it holds, and whether a config may resume in it.

Layout: config.yaml (resolved), preprocessor/ (vocabulary, or names of classes), fingerprint.json (of the data),
execution.json, train.log, metrics.csv, checkpoints/{last,best}.ckpt (and epoch=<n>.ckpt for average_checkpoints,
tested.ckpt for final_statistics), what the task writes (translations/), result.json (written last), and wandb/ or
tensorboard/ where asked for; eval.py writes eval.json, shift.json and evaluation/, scripts/fold.py
checkpoints/folded.*, scripts/export.py exports/, scripts/retrofit.py retrofit.json and retrofit/.

Nothing here imports torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from un.command.errors import UserError
from un.files import replace_file
from un.reports.result import Result, read_result
from un.training.config_keys import flatten, is_science, pins_precision, read_norm
from un.training.data_identity import name_data, read_fingerprint, take_fingerprint, write_fingerprint

DEFAULT_EXPERIMENT = "digits_vit"  # name of what configs/train.yaml composes without an experiment
# Choices whose values are found by their keys, where they change anything.
NOT_NAMED = ("norm", "seed", "callbacks", "trainer")
FILES = ("config.yaml", "fingerprint.json", "execution.json", "metrics.csv", "result.json", "eval.json", "shift.json")
FOLDERS = ("preprocessor", "checkpoints", "translations", "evaluation", "exports", "wandb", "tensorboard", "figures")
RETROFIT = ("retrofit.json", "retrofit")  # of scripts/retrofit.py
RECORDS = ("activation_stats.parquet",)
MAX_NAME_LENGTH = 150  # bytes of one folder name; file systems allow 255
HASH_LENGTH = 10
SHOWN_DIFFERENCES = 3
DELETED = object()  # the value of an override with a tilde


@dataclass(frozen=True)
class RunIdentity:
    """What Hydra knows about a run and its config does not say.

    Attributes:
        folder: the run folder.
        experiment: name of the experiment.
        choices: chosen option by config group, e.g. {"norm": "un"}.
        overrides: the overrides as typed.
    """

    folder: Path
    experiment: str
    choices: Mapping[str, str]
    overrides: tuple[str, ...]

    @classmethod
    def from_hydra(cls) -> RunIdentity:
        """Reads the identity of the running job."""
        hydra = HydraConfig.get()
        choices = {group: str(choice) for group, choice in hydra.runtime.choices.items() if choice is not None}
        return cls(
            Path(hydra.runtime.output_dir),
            choices.get("experiment", DEFAULT_EXPERIMENT),
            choices,
            tuple(hydra.overrides.task),
        )


def name_run(experiment: str, norm: str, overrides: Sequence[str], seed: int, data: str = "") -> str:
    """Returns `<experiment>/norm=<choice>[,<overrides>]/seed=<n>` with those overrides that change the science.

    An option of the norm that is given the value it has anyway changes nothing. `data` is the choice of data, where
    the overrides do not make it.
    """
    values = drop_defaults(read_overrides(overrides), norm, experiment)
    parts = {
        key: _sanitise(key) if value is DELETED else f"{_sanitise(key)}={_show(value)}"
        for key, value in values.items()
        if (is_science(key.lstrip("+~")) and key not in NOT_NAMED)
        or (key.lstrip("+") == "trainer.precision" and pins_precision(experiment))
    }
    path = next((value for key, value in values.items() if key.lstrip("+") == "data.path"), DELETED)
    choice = str(values.get("data", data))
    if choice and path is not DELETED and (own := name_data(choice, path)):
        parts["data.path"] = f"data.path={own}"
    middle = ",".join([f"norm={norm}", *(parts[key] for key in sorted(parts))])
    encoded = middle.encode()
    if len(encoded) > MAX_NAME_LENGTH:
        digest = hashlib.sha256(encoded).hexdigest()[:HASH_LENGTH]
        middle = f"{encoded[: MAX_NAME_LENGTH - HASH_LENGTH - 1].decode(errors='ignore')}-{digest}"
    return f"{_sanitise(experiment)}/{middle}/seed={seed}"


def drop_defaults(values: Mapping[str, Any], norm: str, experiment: str) -> dict[str, Any]:
    """Leaves out options of the norm that an override gives the value which they have without it."""
    if any(key == "task" or key.lstrip("+~").startswith("norm_defaults") for key in values):
        return dict(values)
    options = read_norm(norm, experiment)

    def is_default(key: str, value: Any) -> bool:
        option = options.get(key.lstrip("+"), DELETED)
        return value is not DELETED and value == option and isinstance(value, bool) == isinstance(option, bool)

    return {key: value for key, value in values.items() if not is_default(key, value)}


def read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Returns key -> value, the last where there are several; keys keep their plus, deleted ones their tilde.

    An override with a mapping is one for each of its entries: +norm={a:1,b:2} sets norm.a and norm.b, +norm={} nothing.
    """
    values: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.get_key_element(), override.value()
        if isinstance(value, dict):
            values |= flatten(value, key.lstrip("+")) if value else ()
        else:
            values[key] = DELETED if override.is_delete() else value
    return values


class RunFolder:
    """The files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = path / "../../.."
        self.config = path / "config.yaml"
        self.fingerprint = path / "fingerprint.json"
        self.execution = path / "execution.json"
        self.result = path / "result.json"
        self.evaluation = path / "eval.json"
        self.shift = path / "shift.json"
        self.evaluation_files = path / "evaluation"
        self.metrics = path / "metrics.csv"
        self.preprocessor = path / "preprocessor"
        self.log = path / "train.log"
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.tested = self.checkpoints / "tested.ckpt"
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Takes the folder for this process, not for those it forks; a UserError says that another works in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("a")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"{self.path} is in use: the same run was started already and is not finished") from None

    def holds_run(self) -> bool:
        """Tells whether there is a result or a checkpoint; a run that failed before its first one left nothing."""
        return self.result.exists() or any(self.checkpoints.glob("*.ckpt"))

    @property
    def status(self) -> Literal["interrupted", "failed", "missing"]:
        """Of a folder without a result; an interrupted run may be running still, a failed one has trained nothing."""
        if self.config.exists():
            return "interrupted"
        return "failed" if self.log.exists() else "missing"

    def forget_start(self) -> None:
        """Removes the traces of a start, except the log, where nothing was trained."""
        if not self.holds_run() and not self.metrics.exists():
            for path in (self.config, self.fingerprint, self.execution):
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes what an earlier run left, except the log."""
        for name in (*FILES, *FOLDERS, *RETROFIT, *RECORDS):
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes the resolved config, or raises a UserError where the folder holds a run of another one."""
        if self.config.exists() and self.holds_run():
            self._check_same(self.read_config(), config)
            return
        with replace_file(self.config) as file:
            OmegaConf.save(OmegaConf.create(dict(config)), file)

    def write_fingerprint(self, path: Any) -> None:
        """Writes the fingerprint of the data, or raises a UserError where the folder holds a run of others."""
        if self.holds_run():
            self.check_data(path)
        else:
            write_fingerprint(self.fingerprint, take_fingerprint(path, self.runs))

    def check_data(self, path: Any) -> None:
        """Raises a UserError where the data are not those of the run."""
        if not self.fingerprint.is_file():  # of a run of an early version
            return
        before, now = read_fingerprint(self.fingerprint), take_fingerprint(path, self.runs)
        if now.digest != before.digest:
            raise UserError(
                f"{self.path} holds a run of other data, by names and sizes of their files ({before}; now {now}): use "
                "force=true to start over, another paths.runs, or the data as they were"
            )

    def list_unrecorded(self, config: Mapping[str, Any]) -> list[str]:
        """Returns what a config would have recorded and the run here did not, e.g. `callbacks.activation_stats`."""
        before = self.read_config() if self.config.is_file() else dict(config)
        return [
            f"{group}.{name}"
            for group in ("callbacks", "logger", "trainer")
            for name, value in (config.get(group) or {}).items()
            if value is not None and (before.get(group) or {}).get(name) is None and not is_science(f"{group}.{name}")
        ]

    def read_config(self) -> dict[str, Any]:
        """Reads the resolved config, or raises a UserError where there is none."""
        if not self.config.is_file():
            raise UserError(f"{self.path} is not a run folder: it has no config.yaml")
        loaded = OmegaConf.to_container(OmegaConf.load(self.config))
        if not isinstance(loaded, dict):
            raise UserError(f"{self.config} is not a config: delete the folder or use force=true")
        return {str(key): value for key, value in loaded.items()}

    def read_finished(self) -> Result:
        """Reads the result of a run that has a model.

        Raises:
            UserError: this is no run folder, or its run is unfinished or diverged.
        """
        self.read_config()
        if not self.result.exists():
            raise UserError(f"{self.path} is not finished: run its train.py command again to resume it")
        result = read_result(self.result)
        if result.status == "diverged":
            raise UserError(f"{self.path} diverged at step {result.diverged_step}: it has no model")
        return result

    def _check_same(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        before, now = dict(flatten(old)), dict(flatten(new))
        keys = sorted(key for key in before.keys() | now.keys() if is_science(key))
        changed = [key for key in keys if before.get(key) != now.get(key)]
        if (before.get("data.path") is None) != (now.get("data.path") is None):
            changed.append("data.path")  # generated data are not those of a folder
        if changed:
            listed = [f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed[:SHOWN_DIFFERENCES]]
            more = f" and {len(changed) - SHOWN_DIFFERENCES} more" if len(changed) > SHOWN_DIFFERENCES else ""
            raise UserError(
                f"{self.path} holds a run of another config ({'; '.join(listed)}{more}): "
                "use force=true to start over or another paths.runs"
            )


def _sanitise(text: str) -> str:
    """Leaves only characters that are harmless in a folder name."""
    return re.sub(r"[^\w.,=+~@-]+", "_", text).strip("_")


def _show(value: Any) -> str:
    """Returns an override's value as in the jobs of a sweep, e.g. 0.001 for 1e-3."""
    return _sanitise(value if isinstance(value, str) else Override._get_value_element_as_str(value))


def _resolve_run_name(*, _root_: DictConfig) -> str:
    choices, overrides = _root_.hydra.runtime.choices, list(_root_.hydra.overrides.task)
    experiment, data = choices.get("experiment") or DEFAULT_EXPERIMENT, choices.get("data") or ""
    return name_run(experiment, choices.get("norm"), overrides, _root_.seed, data)


def _resolve_experiment(*, _root_: DictConfig) -> str:
    return RunIdentity.from_hydra().experiment if HydraConfig.initialized() else DEFAULT_EXPERIMENT


# When imported, because the processes of a parallel sweep import this module but do not begin in `run_command`.
OmegaConf.register_new_resolver("run_name", _resolve_run_name, replace=True)
OmegaConf.register_new_resolver("experiment_name", _resolve_experiment, replace=True)
