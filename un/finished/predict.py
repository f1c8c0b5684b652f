"""Uses a finished run for what it was trained for: translating sentences, classifying images."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities import move_data_to_device
from omegaconf import DictConfig, OmegaConf

from un.command.errors import CONFIG_FOLDER, UserError
from un.files import replace_file
from un.finished.fold_run import fold_run, require_inference
from un.finished.graphs import SUFFIXES, choose_format, digest_weights, name_preprocessor, read_record
from un.finished.open_run import FinishedRun, open_run
from un.folding import load_folded
from un.tasks import Prediction
from un.training.preprocessors import read_preprocessor


@dataclass(frozen=True)
class LoadedRun:
    """A finished run that predicts, in float32; it needs nothing but its folder."""

    run: FinishedRun
    device: torch.device

    @property
    def prediction(self) -> Prediction:
        return self.run.inference_data.make_prediction()

    def predict(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """Returns a result for each input, in their order.

        Args:
            inputs: Sentences, whose results are translations (empty for an empty sentence); or paths of images or
                Pillow's images, whose results are mappings from class to probability, the likeliest first.
            **options: For images `topk`, the number of classes; 1 if it is not given.

        Raises:
            ValueError: A sentence is too long, an image unreadable, or an option unknown or out of range.
        """
        if isinstance(inputs, str | Path):
            raise ValueError(f"predict takes a list of inputs, not {inputs!r} alone")
        prediction, task = self.prediction, require_inference(self.run.module)
        known = list(inspect.signature(prediction.interpret).parameters)[1:]
        for name in options:
            if name not in known:
                raise ValueError(f"{name}={options[name]} has no meaning for this run{_list_options(known)}")
        model = task.inference_model.to(self.device).eval()
        found: dict[int, Any] = {}
        with torch.inference_mode():
            for places, batch in prediction.make_batches(inputs):
                outputs = task.predict(model, move_data_to_device(batch, self.device))
                found |= dict(zip(places, prediction.interpret(outputs, **options), strict=True))
        return [found.get(place, "") for place in range(len(inputs))]


def _list_options(known: Sequence[str]) -> str:
    return f"; it takes {', '.join(known)}" if known else ""


def load_run(folder: Path | str, weights: Path | str | None = None, overrides: Sequence[str] = ()) -> LoadedRun:
    """Opens a finished run for prediction.

    Args:
        folder: Of the run.
        weights: A file of `scripts/fold.py` or `scripts/export.py` to compute with instead of the tested checkpoint.
        overrides: As on the command line, e.g. `task.beam=1` or `trainer.accelerator=cpu`.

    Raises:
        UserError: See `open_run`; or the weights are of another run.
    """
    config: Any = OmegaConf.load(CONFIG_FOLDER / "finished.yaml")
    del config["defaults"]
    config = OmegaConf.merge(config, {"run": str(folder)}, OmegaConf.from_dotlist(list(overrides)))
    return open_loaded(config, None if weights is None else Path(weights))


def open_loaded(config: DictConfig, weights: Path | None) -> LoadedRun:
    """Opens a run with a config built on configs/finished.yaml; see `load_run`."""
    run = open_run(config)
    is_graph = weights is not None and weights.suffix in SUFFIXES.values()
    if weights is not None:
        (use_graph if is_graph else use_folded)(run, weights)
    accelerator = "cpu" if is_graph else config.trainer.accelerator or "auto"  # graphs run on the CPU
    return LoadedRun(run, Fabric(accelerator=accelerator, devices=1).device)


def use_folded(run: FinishedRun, weights: Path) -> None:
    """Lets a run infer with a folded checkpoint."""
    task = require_inference(run.module)
    task.use_inference_model(load_folded(weights, task.inference_model))


def use_graph(run: FinishedRun, path: Path) -> None:
    """Lets a run infer with an exported graph; what the graph leaves out is taken from the run.

    Raises:
        UserError: The graph is not of this run.
    """
    record, task = read_record(path), require_inference(run.module)
    kept = read_preprocessor(run.inference_data, name_preprocessor(path))
    difference = kept.explain_difference(run.inference_data.preprocessor)
    if difference:
        raise UserError(f"{path} is a graph of another run than {run.folder.path} (it has {difference})")
    if record["left_out"]:
        if record["digest"] != digest_weights(task.inference_model):
            raise UserError(f"{path} is not of the weights of {run.folder.path}, which do the rest: export it again")
        if record["folded"]:
            task.use_inference_model(fold_run(run)[0])
    task.use_graph(choose_format(record["format"]).load(path))


def write_predictions(config: DictConfig) -> None:
    """Predicts what a command line asks for, and writes or prints it.

    Args:
        config: composed from configs/predict.yaml.

    Raises:
        UserError: See `load_run` and `LoadedRun.predict`.
    """
    if OmegaConf.is_missing(config, "input"):
        raise UserError("input is missing: a sentence, a text file, - for standard input; an image or a folder of them")
    loaded = open_loaded(config, None if config.weights is None else Path(str(config.weights)))
    prediction = loaded.prediction
    inputs = prediction.read(str(config.input))
    options = {} if config.topk is None else {"topk": config.topk}
    text = prediction.write(inputs, loaded.predict(inputs, **options))
    if config.output is None:
        sys.stdout.write(text)
        return
    path = Path(str(config.output))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        file.write(text)
    print(f"{path}: {len(inputs)} {'result' if len(inputs) == 1 else 'results'}")
