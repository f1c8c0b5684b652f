"""Which run a retrofit starts from, and how it trains on; found and checked before torch is imported."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from un.command.errors import CONFIG_FOLDER, UserError
from un.reports.result import Result
from un.training.config_keys import drop_unused
from un.training.run_folder import RunFolder, RunIdentity, read_overrides

LAYERNORM = "layernorm"  # in place of a path: the run with that norm
SCHEDULE = "short"  # of configs/scheduler
SHARE = 0.1  # of the original's steps; ours, see docs/retrofit.md
LENGTHS = ("trainer.max_steps", "trainer.max_epochs", "debug")  # what says itself how long a run trains
log = logging.getLogger(__name__)


def resolve_original(config: DictConfig, identity: RunIdentity) -> None:
    """Writes out in a config what `retrofit=layernorm` and `retrofit_options.steps` mean for this run.

    Raises:
        UserError: there is no such run, or the config has no norm to put in the place of its norms.
    """
    if config.get("retrofit") is None:
        typed = [override for override in identity.overrides if override.lstrip("+").startswith("retrofit_options")]
        if typed:
            raise UserError(f"{typed[0]} does nothing without retrofit=<run folder or checkpoint>")
        drop_unused(config)
        return
    asked = f"retrofit={config.retrofit}"
    if config.norm.get("_target_") is None:
        raise UserError(
            f"{asked} takes norms out and norm=layernorm keeps them: choose what takes their place, as norm=un"
        )
    if config.init_weights is not None:
        raise UserError(f"{asked} and init_weights={config.init_weights} are two starts: give one of them")
    if config.retrofit == LAYERNORM:
        config.retrofit = str(identity.folder.parents[1] / f"norm={LAYERNORM}" / f"seed={config.seed}")
    path = Path(str(config.retrofit))
    result = RunFolder(path).read_finished() if path.is_dir() else None
    if result is None and not path.is_file():
        raise UserError(f"{asked}: {path} is no run folder and no checkpoint")
    _plan_training(config, identity, result)


def _plan_training(config: DictConfig, identity: RunIdentity, result: Result | None) -> None:
    """Sets length and schedule of the training, as far as the command line does not.

    Raises:
        UserError: the length is to be a share of what is not known.
    """
    typed = {key.lstrip("+") for key in read_overrides(identity.overrides)}
    share = config.retrofit_options.steps
    if share is not None and result is None:
        raise UserError(
            f"retrofit_options.steps={share} is a share of a run's steps, but {config.retrofit} is no run folder"
        )
    if share is None and result is not None and not typed.intersection(LENGTHS):
        share = SHARE
    lines = []
    if share is not None and result is not None:
        config.trainer.max_steps = int(share * result.steps)  # at most the share
        lines.append(f"{config.trainer.max_steps} steps, {share:.3g} of the original's")
    if not any(key.partition(".")[0] == "scheduler" for key in typed):
        config.scheduler = OmegaConf.load(CONFIG_FOLDER / "scheduler" / f"{SCHEDULE}.yaml")
        lines.append(f"scheduler={SCHEDULE}, a warm-up and a decay to 0 over the whole of it")
    if lines:
        log.info("trains on with %s", "; ".join(lines))
