"""Which run a retrofit starts from, found and checked before torch is imported."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from un.command.errors import UserError
from un.training.config_keys import drop_unused
from un.training.run_folder import RunFolder, RunIdentity

LAYERNORM = "layernorm"  # in place of a path: the run with that norm


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
    path, share = Path(str(config.retrofit)), config.retrofit_options.steps
    result = RunFolder(path).read_finished() if path.is_dir() else None
    if result is None and not path.is_file():
        raise UserError(f"{asked}: {path} is no run folder and no checkpoint")
    if share is not None:
        if result is None:
            raise UserError(f"retrofit_options.steps={share} is a share of a run's steps, but {path} is no run folder")
        config.trainer.max_steps = round(share * result.steps)
