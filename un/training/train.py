"""One training run, from config to result.json."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from un.command import signals
from un.command.console import quiet_libraries
from un.command.errors import UserError
from un.norms import describe_warmup
from un.reports.result import SCHEMA_VERSION, Result, write_result
from un.training import environment
from un.training.assembly import build, build_trainer
from un.training.averaging import load_tested
from un.training.callbacks.checkpoints import Checkpoints
from un.training.callbacks.divergence import DivergedError
from un.training.callbacks.stopwatch import Stopwatch
from un.training.compilation import compile_in_training
from un.training.execution import Execution, apply_execution, describe_start, keep_execution, plan_execution
from un.training.final_statistics import check_statistics, measure_final_statistics
from un.training.loggers import build_loggers
from un.training.preprocessors import keep_preprocessor
from un.training.run_folder import RunFolder, RunIdentity
from un.weights import check_state, read_checkpoint

log = logging.getLogger(__name__)


def train(config: DictConfig, identity: RunIdentity) -> None:
    """Trains, tests and writes result.json into a folder that `un.training.start` has opened; resumes a killed run.

    Tested is the best checkpoint, or with `average_checkpoints` the mean of the last epochs', with `final_statistics`
    after its statistics were measured again. A signal stops the training with a checkpoint; before and after it, at
    once.
    """
    quiet_libraries()
    folder = RunFolder(identity.folder)
    resumes = folder.last.exists() and not config.force
    loggers = build_loggers(config, identity)
    try:
        trainer = build_trainer(config, folder.path, loggers)
        execution = _settle_execution(config, identity, folder, trainer, resumes)
        config = apply_execution(config, execution)
        data, module = build(config)
        if config.get("final_statistics"):
            check_statistics(module)
        keep_preprocessor(data, folder, resumes=resumes, writes=trainer.is_global_zero)
        with compile_in_training(module.model, config.get("compile")):
            facts = _fit_and_test(config, folder, data, module, trainer, resumes)
        if trainer.is_global_zero:
            result = Result(**facts, **_describe_config(config, identity), **_describe_place(module, execution))
            write_result(result, folder.result)
            for logger in loggers:
                logger.log_result(result, folder.path)
            log.info("%s %s: %s", folder.path, result.status, _describe_outcome(result))
    finally:
        for logger in loggers:
            logger.close()


def _settle_execution(
    config: DictConfig, identity: RunIdentity, folder: RunFolder, trainer: Trainer, resumes: bool
) -> Execution:
    """Lets the trainer accumulate what the recipe's global batch needs, and says what was done."""
    execution = plan_execution(config, identity.overrides, trainer.world_size, str(trainer.precision))
    keep_execution(folder.execution, execution, resumes, writes=trainer.is_global_zero)
    trainer.accumulate_grad_batches = execution.accumulate_grad_batches
    line, is_recipe = describe_start(config, identity.experiment, execution)
    if line and trainer.is_global_zero:
        log.log(logging.INFO if is_recipe else logging.WARNING, "%s", line)
    return execution


def _fit_and_test(
    config: DictConfig,
    folder: RunFolder,
    data: LightningDataModule,
    module: LightningModule,
    trainer: Trainer,
    resumes: bool,
) -> dict[str, Any]:
    """Returns the result's facts about the training; a divergence ends it without a test."""
    last = _check_last(folder, module) if resumes else None
    checkpoints, stopwatch = _find(trainer, Checkpoints), _find(trainer, Stopwatch)
    tests: dict[str, float] = {}
    facts: dict[str, Any] = {"status": "finished", "diverged_step": None}
    try:
        with signals.deferring():
            trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
        if trainer.is_global_zero and (line := describe_warmup(module.get_submodule("model"))):
            log.warning("%s (norm.warmup_steps)", line)
        if checkpoints.validated_step != trainer.global_step:  # max_steps ended the training between two validations
            trainer.validate(module, datamodule=data, verbose=False)
        tested = load_tested(folder, module, config.average_checkpoints)
        if config.get("final_statistics"):
            measure_final_statistics(folder, module, data, trainer, tested)
        tests = {k: float(v) for k, v in trainer.test(module, datamodule=data, verbose=False)[0].items()}
        facts["metric_details"] = describe_metrics(module, tested, config.get("final_statistics"))
    except DivergedError as error:
        facts = {"status": "diverged", "diverged_step": error.step, "diverged_layer": error.layer}
        unknown = not error.is_finite and error.layer is None
        hint = "; trainer.detect_anomaly=true makes it another run, which names the operation" if unknown else ""
        log.warning("stopped: %s%s", error, hint)
    return {
        **facts,
        "metrics": {**checkpoints.best_metrics, **tests},
        "best_epoch": checkpoints.best_epoch,
        "best_step": checkpoints.best_step,
        "steps": trainer.global_step,
        "wall_time_seconds": stopwatch.seconds,
        "train_samples_per_second": stopwatch.samples_per_second,
    }


def describe_metrics(module: LightningModule, tested: list[str], final_statistics: str | None) -> dict[str, str]:
    """Returns what a task says about its metrics, and under `test/*` what was done to a checkpoint before the test.

    Args:
        module: of the task.
        tested: names of the checkpoints that the weights come from.
        final_statistics: of the run's config.
    """
    describe: Any = getattr(module, "metric_details", dict)
    notes = [f"weights averaged over {', '.join(tested)}"] if len(tested) > 1 else []
    notes += ["inference statistics measured again over the training set"] if final_statistics else []
    return {**describe(), **({"test/*": "; ".join(notes)} if notes else {})}


def _check_last(folder: RunFolder, module: LightningModule) -> str:
    """Returns the path of last.ckpt after making sure that it can be loaded."""
    checkpoint = read_checkpoint(folder.last)
    check_state(module, checkpoint.get("state_dict", {}), folder.last)
    log.info("resuming %s after step %d", folder.path, checkpoint["global_step"])
    return str(folder.last)


def _describe_config(config: DictConfig, identity: RunIdentity) -> dict[str, Any]:
    groups: dict[str, Any] = {}
    for group in ("norm", "model", "data"):
        options = OmegaConf.to_container(config[group], resolve=True)
        assert isinstance(options, dict)
        plain = {str(key): value for key, value in options.items() if not str(key).startswith("_")}
        groups[group] = {"choice": identity.choices.get(group, ""), **plain}
    return {
        "task": config.task._target_,
        "experiment": identity.experiment,
        "seed": config.seed,
        "overrides": list(identity.overrides),
        **groups,
    }


def _describe_place(module: Any, execution: Execution) -> dict[str, Any]:
    return {
        "execution": execution.describe(),
        "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
        "peak_memory_bytes": environment.measure_peak_memory(),
        "git": environment.describe_git(),
        "packages": environment.list_packages(),
        "hardware": environment.describe_hardware(),
        "schema_version": SCHEMA_VERSION,
    }


def _describe_outcome(result: Result) -> str:
    if result.status == "diverged":
        where = f", first in {result.diverged_layer}" if result.diverged_layer else ""
        return f"at step {result.diverged_step}{where}"
    return "  ".join(f"{name} {value:.4g}" for name, value in result.metrics.items() if value is not None)


def _find(trainer: Trainer, kind: type[Any]) -> Any:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, kind):
            return callback
    raise UserError(f"callbacks lacks {kind.__name__}, without which a run cannot be recorded")
