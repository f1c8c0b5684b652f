"""Builds what a config names, in the one order that is right.

Data, model, outside weights, norms, step counters; then the task's module, whose optimizer and averaged weights see the
final parameters. Our checkpoint is loaded by the caller once the module stands.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import nn

from un.command.errors import UserError
from un.surgery import NormFactory, mark_final_norms, replace_norms, reset_norm_steps
from un.training.accelerators import check_devices
from un.training.callbacks.checkpoints import AtomicCheckpointIO
from un.training.callbacks.progress import ProgressBar
from un.training.parts import build_part, check_arguments, read_partial
from un.training.preprocessors import check_initial_weights, use_kept_preprocessor
from un.training.retrofitting import build_retrofitted
from un.training.run_folder import RunFolder
from un.training.weights import drop_other_head, read_model_weights
from un.weights import check_state

PROBE_FEATURES = 5040  # for the trial norm: divisible by every group count up to 10
log = logging.getLogger(__name__)


def build(config: DictConfig, finished: RunFolder | None = None) -> tuple[Any, LightningModule]:
    """Builds data and task module, the norms replaced.

    Args:
        config: with the groups of configs/train.yaml.
        finished: run whose preprocessor the data work with; None makes one from the training data.

    Raises:
        UserError, ValueError: a wrong value or name; nothing heavy is built before the values are checked.
    """
    factory = build_norm_factory(config.norm)
    seed_everything(config.seed, verbose=False)
    data = build_part(config, "data")
    if finished is not None:
        use_kept_preprocessor(data, finished)
    data.prepare_data()
    data.setup("fit")
    if config.init_weights is not None:
        check_initial_weights(data, Path(str(config.init_weights)))
    if config.get("retrofit") is not None and factory is not None:
        return data, build_retrofitted(config, data, factory, partial(build_task, config))
    return data, build_task(config, build_model(config, data.model_arguments(), factory))


def build_task(config: DictConfig, model: nn.Module) -> LightningModule:
    """Builds the task's module, which makes optimizer and scheduler when it is fitted."""
    parts = {name: build_part(config, name) for name in ("optimizer", "scheduler") if config.get(name) is not None}
    task: LightningModule = build_part(config, "task", model=model, **parts)
    return task


def build_model(config: DictConfig, arguments: Mapping[str, Any], factory: NormFactory | None) -> nn.Module:
    """Builds the model with its norms and starting weights.

    Outside weights are loaded before the norms are replaced, so that these carry the trained scale and shift over;
    weights that were saved with such norms in place hold their state and are loaded after. A model that knows padding
    has `use_pad_mask(enabled)`, which says whether the new norms are told where it is.
    """
    model = build_part(config, "model", **{k: v for k, v in arguments.items() if k not in config.model})
    path = None if config.init_weights is None else Path(str(config.init_weights))
    weights = {} if path is None else drop_other_head(model, read_model_weights(path))
    holds_norm_state = factory is not None and not model.state_dict().keys() >= weights.keys()
    if path is not None and not holds_norm_state:
        _load_weights(model, weights, path)
    if factory is not None:
        surgery = config.surgery
        report = replace_norms(model, factory, surgery.include, surgery.exclude, surgery.carry_affine)
        log.info("%s", report)
        mark_final_norms(model, surgery.get("final") or [])
        if hasattr(model, "use_pad_mask"):
            model.use_pad_mask(bool(surgery.pad_mask))
    else:
        log.info("the model is left untouched")
    if path is not None and holds_norm_state:
        _load_weights(model, weights, path)
    if config.surgery.reset_steps:
        log.info("step counters of %d norms start over", reset_norm_steps(model))
    return model


def _load_weights(model: nn.Module, weights: Mapping[str, Any], path: Path) -> None:
    check_state(model, weights, path)
    model.load_state_dict(weights)


def build_norm_factory(config: DictConfig) -> NormFactory | None:
    """Returns the norm's constructor with its options, tried once without memory; None leaves the model untouched."""
    if config.get("_target_") is None:
        return None
    factory = read_partial("norm", config)
    check_arguments("norm", factory.func, factory.keywords)
    try:
        factory(PROBE_FEATURES, device="meta")
    except (TypeError, ValueError) as error:
        raise UserError(f"norm: {error}") from None
    return factory


def build_trainer(
    config: DictConfig, folder: Path, loggers: Sequence[Logger], further: Sequence[Callback] = ()
) -> Trainer:
    """Builds Lightning's Trainer with the callbacks of the config and further ones, in their order.

    A progress bar needs a terminal.
    """
    check_devices(config.trainer)
    callbacks: list[Callback] = [
        build_part(config, f"callbacks.{name}") for name, entry in config.callbacks.items() if entry is not None
    ]
    has_bar = config.trainer.enable_progress_bar and sys.stdout.isatty()
    if not has_bar:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    trainer: Trainer = build_part(
        config,
        "trainer",
        callbacks=[*callbacks, *further],
        logger=list(loggers) or False,
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=has_bar,
        default_root_dir=str(folder),
        num_sanity_val_steps=0,  # a validation before the first step would be one more state to resume from
        enable_model_summary=False,
    )
    # Lightning's answer to SIGTERM is to leave without a checkpoint; ours is in `un.command.signals`.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer
