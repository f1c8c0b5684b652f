"""Loggers beside metrics.csv; a logger that cannot start costs a warning, never the run."""

import logging
import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from un.runtime.run_folder import RunIdentity

WANDB_HOST = "api.wandb.ai"
log = logging.getLogger(__name__)


def build_loggers(config: Mapping[str, Any] | None, identity: RunIdentity) -> list[Logger]:
    """Builds the loggers of `config.logger`; those that fail are left out with a warning."""
    loggers = []
    for name, entry in (config or {}).items():
        try:
            loggers.append(instantiate(entry, _partial_=True, _convert_="all")(identity=identity))
        except Exception as error:  # whatever a service or its package raises, training goes on
            log.warning("logger=%s does not start, going on without it: %s", name, " ".join(str(error).split()))
    return loggers


def build_tensorboard_logger(identity: RunIdentity) -> TensorBoardLogger:
    """Writes event files to `<run folder>/tensorboard`."""
    return TensorBoardLogger(identity.folder, name="", version="tensorboard")


def build_wandb_logger(
    identity: RunIdentity, project: str, entity: str | None, group: str | None, tags: Sequence[str]
) -> WandbLogger:
    """Logs to Weights & Biases under an id made of the run folder's name, so that a resumed run continues its page.

    Args:
        identity: of the run; its folder also holds wandb's files.
        project: of wandb.
        entity: team or user of wandb; None is the user's default.
        group: None is the experiment.
        tags: of wandb.
    """
    name = "/".join(identity.folder.parts[-3:])
    logger = WandbLogger(
        name=name,
        id=name.replace("/", "--"),
        resume="allow",
        save_dir=identity.folder,
        project=project,
        entity=entity,
        group=group or identity.experiment,
        tags=list(tags),
        mode=_choose_wandb_mode(),
    )
    logger.experiment  # noqa: B018  starts the service now, so that its failure is noticed here
    return logger


def _choose_wandb_mode() -> str:
    """Returns WANDB_MODE if it is set, "online" for a user who is logged in, else "offline"."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        known = netrc.netrc(os.environ.get("NETRC", Path.home() / ".netrc")).authenticators(WANDB_HOST)
    except (OSError, netrc.NetrcParseError):
        known = None
    return "online" if known else "offline"
