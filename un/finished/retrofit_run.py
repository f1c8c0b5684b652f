"""Takes the norms out of a finished run's model without training, tests it folded, and writes it as a run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from un.command.errors import UserError
from un.files import replace_file
from un.finished.evaluate import format_metrics, measure_speed
from un.finished.fold_run import require_inference
from un.finished.open_run import FinishedRun, open_run
from un.finished.shift import check_shifts, compare_shifted, measure_shifts
from un.folding import FoldReport, fold_norms
from un.norms import CenteredMap, ChannelMap
from un.reports.result import write_json, write_result
from un.reports.shift import add_shifts
from un.retrofit import RetrofitReport, retrofit
from un.training.retrofitting import FirstBatches
from un.training.run_folder import RETROFIT, RunFolder

RECORD, FOLDER = RETROFIT  # in the run folder; the latter holds a run per method
METHODS: dict[str, type[nn.Module]] = {
    "least_squares": ChannelMap,
    "scalar": ChannelMap,
    "fake_layernorm": CenteredMap,
}  # and what they leave


def retrofit_run(config: DictConfig) -> Path:
    """Retrofits a run and writes `retrofit.json` into its folder.

    Args:
        config: composed from configs/retrofit.yaml; both models are tested under the shifts in it, too.

    Returns:
        The folder of the norm-free model, which eval.py and the other programs open as a run.

    Raises:
        UserError: a value is not allowed, or the model cannot be retrofitted or folded; see also `open_run`.
    """
    check_options(config)
    shifts = config.get("shift") or OmegaConf.create({})
    check_shifts(shifts)
    run = open_run(config)
    task = require_inference(run.module)
    original = task.inference_model
    output = Path(str(config.output or run.folder.path / FOLDER / config.method))
    if output.exists() and not (output / RECORD).is_file():
        raise UserError(f"output={output} holds something else: name a folder that does not exist")
    shifted = {"original": dict(measure_shifts(run, shifts))}
    trainer = run.build_trainer(run.folder.evaluation_files)
    metrics = {"original": run.test(trainer)}
    changed, folded, report, fold = take_out(run, config)
    task.use_inference_model(folded)
    metrics["norm_free"] = run.test(trainer)
    shifted["norm_free"] = dict(measure_shifts(run, shifts, folded=True))
    under = {name: {kind: found[name] for kind, found in shifted.items()} for name in shifted["original"]}
    speed = measure_speed(run, trainer, original)
    content = {
        **metrics,
        "difference": {name: value - metrics["original"][name] for name, value in metrics["norm_free"].items()},
        "fold": {"norms": len(fold.rows), "folded": len(fold.folded)},
        "speed": {
            "original_seconds": speed["unfolded_seconds"],
            "norm_free_seconds": speed["folded_seconds"],
            "speed_up": speed["speed_up"],
        },
        "shift": {name: {kind: asdict(found) for kind, found in pair.items()} for name, pair in under.items()},
        "calibration_batches": config.calibration_batches,
        "report": report.describe(),
        "run": str(output),
    }
    task.use_inference_model(changed)
    write_run(run, output, config, metrics["norm_free"])
    for place, kind in ((output, "norm_free"), (run.folder.path, "original")):
        write_json(content, place / RECORD)
        if shifts:
            add_shifts(shifted[kind], RunFolder(place).shift)
    tables = [compare_shifted(name, pair) for name, pair in under.items()]
    print("\n".join([str(report), *tables, format_retrofit(content, fold)]))
    return output


def check_options(config: DictConfig) -> None:
    """Checks the options.

    Raises:
        UserError: Names the key, its value and what is allowed.
    """
    if config.method not in METHODS:
        raise UserError(f"method={config.method} must be one of {', '.join(METHODS)}")
    if not isinstance(config.calibration_batches, int) or config.calibration_batches < 1:
        raise UserError(f"calibration_batches={config.calibration_batches} must be a whole number of at least 1")


def take_out(run: FinishedRun, config: DictConfig) -> tuple[nn.Module, nn.Module, RetrofitReport, FoldReport]:
    """Returns the model without norms, the same folded, and both reports.

    Raises:
        UserError: the model cannot be retrofitted or folded.
    """
    task: Any = run.module
    original = task.inference_model
    if hasattr(original, "use_pad_mask"):
        original.use_pad_mask(True)  # padding stays out of the fits
    batches = FirstBatches(run.data.train_dataloader(), config.calibration_batches)
    try:
        changed, report = retrofit(
            original, batches, None, config.method, task.call_model, include=config.include, exclude=config.exclude
        )
        example = task.make_fold_inputs(run.inference_data.make_example_batch(seed=0))
        folded, fold = fold_norms(changed, example)
    except (ArithmeticError, ValueError) as error:
        raise UserError(f"{run.folder.path} cannot be retrofitted: {error}") from error
    return changed, folded, report, fold


def write_run(run: FinishedRun, output: Path, config: DictConfig, metrics: Mapping[str, float]) -> None:
    """Writes the module's model with the config, preprocessor and data of its run into a folder that opens as a run."""
    folder = RunFolder(output)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.clear()
    settings = OmegaConf.create(run.folder.read_config())
    kind = METHODS[config.method].__name__
    settings.norm = {"_target_": f"un.norms.{kind}", "_partial_": True}
    settings.surgery.include, settings.surgery.exclude = config.include, config.exclude
    settings.retrofit, settings.average_checkpoints = str(run.folder.path), None
    if "ema_decay" in settings.task:
        settings.task.ema_decay = None  # there is one model left, whichever was tested
    if run.folder.preprocessor.is_dir():
        shutil.copytree(run.folder.preprocessor, folder.preprocessor)
    if run.folder.fingerprint.is_file():
        shutil.copy(run.folder.fingerprint, folder.fingerprint)
    folder.checkpoints.mkdir()
    with replace_file(folder.best, binary=True) as file:
        torch.save({"state_dict": run.module.state_dict()}, file)
    folder.write_config(dict(OmegaConf.to_container(settings)))  # type: ignore[arg-type]
    overrides = [*run.recorded.overrides, f"retrofit={run.folder.path}", f"retrofit_options.method={config.method}"]
    norm = {"choice": kind}
    result = replace(run.recorded, norm=norm, overrides=overrides, metrics=dict(metrics), best_epoch=None, steps=0)
    write_result(replace(result, best_step=None), folder.result)


def format_retrofit(content: Mapping[str, Any], fold: FoldReport) -> str:
    """Returns what `retrofit.json` holds for a reader."""
    speed = content["speed"]
    left = [f"norm left: {row.site}: {row.outcome}: {row.stays}" for row in fold.remaining]
    return "\n".join(
        [
            *left,
            format_metrics({name: content[name] for name in ("original", "norm_free", "difference")}),
            f"{content['fold']['folded']} of {content['fold']['norms']} norms folded",
            f"a batch took {speed['norm_free_seconds']:.4g} s without norms, {speed['original_seconds']:.4g} s before: "
            f"{speed['speed_up']:.2f} times as fast",
            content["run"],
        ]
    )
