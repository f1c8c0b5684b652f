"""Loggers beside metrics.csv; one that cannot start or breaks costs a warning, never the run."""

import hashlib
import logging
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from un.reports.result import Result
from un.training.run_folder import RunIdentity

ID_LENGTH = 16
WANDB_HOST = "api.wandb.ai"
WANDB_PATIENCE = 30  # seconds for the server at the start and, where something is left to upload, at the end
log = logging.getLogger(__name__)


class GuardedLogger(Logger):
    """Passes everything on to another logger until that raises; then warns and goes quiet.

    Args:
        label: what the warning calls it.
        logger: the other one.
    """

    def __init__(self, label: str, logger: Logger) -> None:
        super().__init__()
        self.label, self.logger = label, logger
        self._broken = False

    @property
    def name(self) -> str | None:
        """Of the other logger."""
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        """Of the other logger."""
        return self.logger.version

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Passes metrics on."""
        self._try(self.logger.log_metrics, metrics, step)

    def log_hyperparams(self, params: Any, *arguments: Any, **keywords: Any) -> None:
        """Passes the config on."""
        self._try(self.logger.log_hyperparams, params, *arguments, **keywords)

    def save(self) -> None:
        """Passes it on."""
        self._try(self.logger.save)

    def finalize(self, status: str) -> None:
        """Passes it on."""
        self._try(self.logger.finalize, status)

    def log_result(self, result: Result, folder: Path) -> None:
        """Hands wandb the result as the run's summary, and the figures of the run folder as images."""
        if isinstance(self.logger, WandbLogger):
            self._try(_summarize, self.logger.experiment, result, folder)

    def close(self) -> None:
        """Ends a wandb run, which the next job of a sweep would go on with otherwise."""
        if isinstance(self.logger, WandbLogger):
            self._try(lambda: self.logger.experiment.finish())  # type: ignore[attr-defined]

    def _try(self, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        if self._broken:
            return
        try:
            call(*arguments, **keywords)
        except Exception as error:  # whatever a service or its package raises
            self._broken = True
            _warn(self.label, "broke, going on without it", error)


def _summarize(page: Any, result: Result, folder: Path) -> None:
    from wandb import Image

    page.summary.update(asdict(result))
    figures = sorted(folder.glob("figures/*.png"))
    if figures:
        page.log({f"figures/{path.stem}": Image(str(path)) for path in figures})


def build_loggers(config: DictConfig, identity: RunIdentity) -> list[GuardedLogger]:
    """Builds the loggers of `config.logger` and tells them the config; those that fail are left out with a warning."""
    loggers = []
    for name, entry in (config.logger or {}).items():
        try:
            logger = instantiate(entry, _partial_=True, _convert_="all")(identity=identity)
        except Exception as error:
            _warn(name, "does not start, going on without it", error)
            continue
        loggers.append(GuardedLogger(name, logger))
        loggers[-1].log_hyperparams(OmegaConf.to_container(config, resolve=True))
    return loggers


def build_tensorboard_logger(identity: RunIdentity) -> TensorBoardLogger:
    """Writes event files to `<run folder>/tensorboard`."""
    return TensorBoardLogger(identity.folder, name="", version="tensorboard")


def build_wandb_logger(
    identity: RunIdentity, project: str, entity: str | None, group: str | None, tags: Sequence[str]
) -> WandbLogger:
    """Logs to Weights & Biases under an id made of the run folder's name, so that a resumed run continues its page.

    A server that cannot be reached costs a warning: the run is kept in `<run folder>/wandb`, for `wandb sync`.

    Args:
        identity: of the run; its folder also holds wandb's files.
        project: of wandb.
        entity: team or user of wandb; None is the user's default.
        group: None is the experiment, and the ablation behind it if the run was started for one.
        tags: of wandb, beside those of the variable WANDB_TAGS (which reproducing a table sets to its name).
    """
    from wandb import Settings, teardown  # costs a second

    ablation = identity.choices.get("ablation")
    group = group or "/".join([identity.experiment, *([ablation] if ablation else [])])
    name = "/".join(identity.folder.parts[-3:])
    mode = choose_wandb_mode(os.environ)
    for choice in dict.fromkeys([mode, "offline"]):
        logger = WandbLogger(
            name="/".join(identity.folder.parts[-2:]),  # overrides and seed
            id=hashlib.sha256(name.encode()).hexdigest()[:ID_LENGTH],  # wandb forbids the signs a name may have
            resume="allow",
            save_dir=identity.folder,
            project=project,
            entity=entity,
            group=group,
            tags=[*tags, *filter(None, os.environ.get("WANDB_TAGS", "").split(","))],
            mode=choice,
            settings=Settings(init_timeout=WANDB_PATIENCE, finish_timeout=WANDB_PATIENCE),
        )
        try:
            logger.experiment  # noqa: B018  starts the service now, so that its failure is noticed here
        except Exception as error:  # whatever wandb and its service raise
            if choice == "offline":
                raise
            _warn("wandb", "does not reach its server, so the run is kept offline", error)
            teardown()  # the service holds the id of the page that did not come about
        else:
            return logger
    raise AssertionError("the loop returns or raises")


def choose_wandb_mode(environment: Mapping[str, str]) -> str:
    """Returns WANDB_MODE if it is set, "online" for a user who is logged in, else "offline"."""
    if mode := environment.get("WANDB_MODE"):
        return mode
    if environment.get("WANDB_API_KEY"):
        return "online"
    try:
        known = netrc.netrc(environment.get("NETRC", Path.home() / ".netrc")).authenticators(WANDB_HOST)
    except (OSError, netrc.NetrcParseError):
        known = None
    return "online" if known else "offline"


def _warn(label: str, what: str, error: Exception) -> None:
    log.warning("logger=%s %s: %s", label, what, " ".join(str(error).split()))
