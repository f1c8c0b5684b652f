"""Loggers beside metrics.csv; one that fails to start or breaks costs a warning, never the run."""

import functools
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

# Of Lightning's loggers; the last two are ours, and a logger may lack them.
GUARDED = ("log_hyperparams", "log_metrics", "save", "finalize", "log_result", "close")
ID_LENGTH = 16
WANDB_HOST = "api.wandb.ai"
WANDB_PATIENCE = 30  # seconds for the server at the start and, where something is left to upload, at the end
log = logging.getLogger(__name__)


def build_loggers(config: DictConfig, identity: RunIdentity) -> list[Any]:
    """Builds the loggers of `config.logger` and tells them the config.

    Beside what Lightning calls, each has `log_result(result, folder)` and `close()`.
    """
    loggers = []
    for name, entry in (config.logger or {}).items():
        try:
            logger = instantiate(entry, _partial_=True, _convert_="all")(identity=identity)
        except Exception as error:  # whatever a service or its package raises
            _warn(name, "failed to start; continuing without it", error)
            continue
        guard(name, logger)
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
        loggers.append(logger)
    return loggers


def guard(name: str, logger: Logger) -> None:
    """Makes the first error of a logger a warning, after which it stays silent; adds the methods it may lack."""
    is_broken = False

    def guarded(call: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(call)
        def try_call(*arguments: Any, **keywords: Any) -> None:
            nonlocal is_broken
            if is_broken:
                return
            try:
                call(*arguments, **keywords)
            except Exception as error:  # whatever a service or its package raises
                is_broken = True
                _warn(name, "broke; continuing without it", error)

        return try_call

    for method in GUARDED:
        setattr(logger, method, guarded(getattr(logger, method, lambda *_: None)))


def build_tensorboard_logger(identity: RunIdentity) -> TensorBoardLogger:
    """Writes event files to `<run folder>/tensorboard`."""
    return TensorBoardLogger(identity.folder, name="", version="tensorboard")


class RunPage(WandbLogger):
    """A page of Weights & Biases, which in the end shows the result and the figures of the run folder."""

    def log_result(self, result: Result, folder: Path) -> None:
        from wandb import Image

        page: Any = self.experiment
        page.summary.update(asdict(result))
        figures = sorted(folder.glob("figures/*.png"))
        if figures:
            page.log({f"figures/{path.stem}": Image(str(path)) for path in figures})

    def close(self) -> None:
        """Ends the page; otherwise the next job of a sweep would write on it."""
        page: Any = self.experiment
        page.finish()


def build_wandb_logger(
    identity: RunIdentity, project: str, entity: str | None, group: str | None, tags: Sequence[str]
) -> RunPage:
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
    name = "/".join(identity.folder.parts[-3:])

    def start(mode: str) -> RunPage:
        page = RunPage(
            name="/".join(identity.folder.parts[-2:]),  # overrides and seed
            id=hashlib.sha256(name.encode()).hexdigest()[:ID_LENGTH],  # wandb forbids the signs a name may have
            resume="allow",
            save_dir=identity.folder,
            project=project,
            entity=entity,
            group=group or "/".join([identity.experiment, *([ablation] if ablation else [])]),
            tags=[*tags, *filter(None, os.environ.get("WANDB_TAGS", "").split(","))],
            mode=mode,
            settings=Settings(init_timeout=WANDB_PATIENCE, finish_timeout=WANDB_PATIENCE),
        )
        page.experiment  # noqa: B018  starts the service now, so that its failure is noticed here
        return page

    mode = choose_wandb_mode(os.environ)
    try:
        return start(mode)
    except Exception as error:  # whatever wandb and its service raise
        if mode == "offline":
            raise
        _warn("wandb", "does not reach its server, so the run is kept offline", error)
        teardown()  # the service holds the id of the page that did not come about
        return start("offline")


def choose_wandb_mode(environment: Mapping[str, str]) -> str:
    """Returns WANDB_MODE if it is set, "online" for a user who is logged in, else "offline"."""
    if mode := environment.get("WANDB_MODE"):
        return mode
    try:
        known = netrc.netrc(environment.get("NETRC", Path.home() / ".netrc")).authenticators(WANDB_HOST)
    except (OSError, netrc.NetrcParseError):
        known = None
    return "online" if known or environment.get("WANDB_API_KEY") else "offline"


def _warn(name: str, what: str, error: Exception) -> None:
    log.warning("logger=%s %s: %s", name, what, " ".join(str(error).split()))
