"""Training on a model whose norms have been taken out: `retrofit=<run folder or checkpoint>`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from omegaconf import DictConfig
from torch import nn

from un.command.errors import UserError
from un.command.value_types import FromOne, FromZero, NumberFromZero
from un.folding.verify import list_tensors
from un.retrofit import retrofit
from un.retrofit.distillation import Distillation, measure_divergence
from un.surgery import NormFactory
from un.training.averaging import average_states, choose_tested
from un.training.parts import build_part
from un.training.preprocessors import check_initial_weights
from un.training.run_folder import RunFolder
from un.training.weights import read_model_weights
from un.weights import check_state

METHODS = ("least_squares", "scalar")  # each is the better one somewhere, see docs/retrofit.md
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrofitOptions:
    """How a model is retrofitted and trained on; of `configs/retrofit_options`.

    Attributes:
        method: as of `un.retrofit.retrofit`; None takes the one after which the predictions have
            changed less, as KL on the calibration data.
        calibration_batches: first training batches that the maps are fitted on.
        logits_weight, hidden_weight, every: as of `un.retrofit.distillation.Distillation`.
        augment: whether images are augmented and mixed as in the original's training.
        steps: length of the training as a share of the original's steps; null is a tenth, unless the original is a
            checkpoint or the command line gives the trainer a length.
    """

    method: Literal["least_squares", "scalar"] | None = None
    calibration_batches: FromOne = 16
    logits_weight: NumberFromZero = 1.0
    hidden_weight: NumberFromZero = 10.0
    every: FromZero = 0
    augment: bool = False
    steps: NumberFromZero | None = None


class FirstBatches:
    """The first batches of a loader, as often as they are asked for.

    Args:
        batches: starts anew with the same batches at every iteration.
        count: how many.
    """

    def __init__(self, batches: Iterable[Any], count: int) -> None:
        self.batches, self.count = batches, count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.count)


def build_retrofitted(
    config: DictConfig, data: Any, factory: NormFactory, build_task: Callable[[nn.Module], LightningModule]
) -> LightningModule:
    """Builds the task of a model without the norms of the original, which teaches it.

    Args:
        config: of the run, with `retrofit` and `retrofit_options`.
        data: of the run; their first training batches are the calibration data.
        factory: builds what takes the place of the norms.
        build_task: of a model.

    Raises:
        UserError: there is no such original, it is of another model, or cannot be retrofitted.
    """
    options: RetrofitOptions = build_part(config, "retrofit_options")
    original = build_original(config, data).eval()
    if not options.augment:
        _switch_off(data, augment=False)
    batches = FirstBatches(data.train_dataloader(), options.calibration_batches)
    call: Any = build_task(original).call_model
    globs = {"include": config.surgery.include, "exclude": config.surgery.exclude}
    methods = METHODS if options.method is None else (options.method,)
    try:
        found = [retrofit(original, batches, factory, method, call, **globs) for method in methods]
    except ValueError as error:
        raise UserError(f"retrofit={config.retrofit} cannot be retrofitted: {error}") from error
    chosen = 0 if len(found) == 1 else _find_closest(original, [model for model, _ in found], call, batches)
    model, report = found[chosen]
    log.info("%s", report)
    module: Any = build_task(model.train())
    if not options.augment:
        _switch_off(module, mixup=None, random_erasing=None)
    module.distillation = Distillation(
        original,
        model,
        [row.site.partition(", ")[0] for row in report.rows],
        logits_weight=options.logits_weight,
        hidden_weight=options.hidden_weight,
        every=options.every,
        read_step=lambda: module.global_step,
    )
    task: LightningModule = module
    return task


@torch.no_grad()
def _find_closest(original: nn.Module, models: Sequence[nn.Module], call: Any, batches: Iterable[Any]) -> int:
    """Returns the number of the model whose predictions diverge least from those of the original."""
    changes = [0.0] * len(models)
    for batch in batches:
        expected, *predictions = (list_tensors(call(one, batch))[0] for one in (original, *models))
        for number, logits in enumerate(predictions):
            changes[number] += float(measure_divergence(logits, expected))
    return changes.index(min(changes))


def _switch_off(part: Any, **values: Any) -> None:
    """Sets attributes that a data or a task module has."""
    for name, value in values.items():
        if hasattr(part, name):
            setattr(part, name, value)


def build_original(config: DictConfig, data: Any) -> nn.Module:
    """Builds the model with its own norms and the weights that its run was tested with.

    Raises:
        UserError: they are of another model, or of other data.
    """
    arguments = data.model_arguments()
    model: Any = build_part(config, "model", **{k: v for k, v in arguments.items() if k not in config.model})
    paths = list_tested(Path(str(config.retrofit)))
    check_initial_weights(data, paths[0], "retrofit")
    states = map(read_model_weights, paths)
    weights = average_states(states) if len(paths) > 1 else next(states)
    check_state(model, weights, paths[0])
    model.load_state_dict(weights)
    if hasattr(model, "use_pad_mask"):
        model.use_pad_mask(bool(config.surgery.pad_mask))
    return model


def list_tested(original: Path) -> list[Path]:
    """Returns the checkpoints whose mean a run was tested with, or the one that is given."""
    if not original.is_dir():
        return [original]
    folder = RunFolder(original)
    return choose_tested(folder, folder.read_config().get("average_checkpoints"))
