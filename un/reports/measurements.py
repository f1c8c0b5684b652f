"""What `scripts/benchmark.py inference` measures: what is planned, what is there and what it says."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from un.reports.runs import read_below

FOLDER = "benchmark_inference"  # below the folder of runs
MODELS = ("swin_tiny", "vit_small", "t2t_vit_14", "iwslt_encoder", "iwslt_beam5")
ENGINES = ("eager", "compile", "onnxruntime")
BATCHES = {"cpu": (1, 8), "cuda": (1, 64, 256)}  # by device
LAYER_NORM, FOLDED = "layernorm", "un_folded"  # the arms that are compared
METRICS = ("speed", "memory")
KEYS = ("model", "engine", "device", "dtype", "batch", "threads", "hardware", "arms")
ENDING = ".json"


@dataclass(frozen=True, order=True)
class Setting:
    """What is measured in one file."""

    model: str
    engine: str
    device: str
    dtype: str
    batch: int

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.model}-{self.engine}-{self.device}-{self.dtype}-batch={self.batch}{ENDING}"

    def list_arguments(self, folder: Path) -> list[str]:
        """Returns the arguments that make `python scripts/benchmark.py` measure it into a folder."""
        choices = {"models": self.model, "engines": self.engine, "device": self.device, "dtype": self.dtype}
        arguments = {**choices, "batches": self.batch, "folder": folder}
        return ["inference", *(part for key, value in arguments.items() for part in (f"--{key}", str(value)))]


@dataclass(frozen=True)
class Measurement:
    """A file of the benchmark.

    Attributes:
        path: of the file.
        content: of the file.
    """

    path: Path
    content: Mapping[str, Any]

    @cached_property
    def setting(self) -> Setting:
        """What was measured."""
        return Setting(*(self.content[key] for key in ("model", "engine", "device", "dtype", "batch")))

    @property
    def place(self) -> str:
        """The hardware, e.g. "NVIDIA A100-SXM4-40GB"."""
        hardware = self.content["hardware"]
        if self.setting.device == "cuda":
            return str(hardware["gpu"][0])
        return f"{hardware['cpu']} ({self.content['threads']} threads)"

    def get_gain(self, metric: str) -> float | None:
        """Returns percent by which folded UN is faster (in calls per second) or needs less memory than LayerNorm.

        Args:
            metric: "speed", of the medians, or "memory", of what a call holds at most beside the weights.

        Returns:
            The gain; None where it was not measured.
        """
        before, after = (
            self.content["arms"][arm]["seconds" if metric == "speed" else "peak_megabytes"]
            for arm in (LAYER_NORM, FOLDED)
        )
        if before is None or after is None:
            return None
        return 100 * (before / after - 1 if metric == "speed" else 1 - after / before)


def find_obstacle(model: str, engine: str, device: str, dtype: str) -> str:
    """Returns why something cannot be measured; empty where it can."""
    if model == "iwslt_beam5" and engine != "eager":
        return "a search with a cache that grows is no fixed graph"
    if engine == "onnxruntime" and device != "cpu":
        return "onnxruntime is measured on the CPU"
    if engine == "onnxruntime" and dtype != "float32":
        return "graphs are exported in float32"
    return ""


def plan_settings(models: Iterable[str], device: str) -> list[Setting]:
    """Lists what the benchmark measures of these models unless told otherwise."""
    choices = product(models, ENGINES, BATCHES[device])
    return [
        Setting(model, engine, device, "float32", batch)
        for model, engine, batch in choices
        if not find_obstacle(model, engine, device, "float32")
    ]


def find_measurements(folders: Iterable[Path]) -> tuple[list[Measurement], list[str]]:
    """Reads all measurements below the folders, run folders left out.

    Returns:
        The measurements in the order of their models, and one line for each file that could not be read.
    """
    found, problems = read_below(folders, _walk, read_measurement)
    found.sort(
        key=lambda one: (MODELS.index(one.setting.model), ENGINES.index(one.setting.engine), one.setting, one.place)
    )
    return found, problems


def read_measurement(path: Path) -> Measurement:
    """Reads a file of the benchmark.

    Raises:
        ValueError: it is something else, or of an unknown model or engine.
    """
    try:
        content = json.loads(path.read_text())
        missing = [key for key in KEYS if key not in content]
        if missing:
            raise ValueError(f"lacks {', '.join(missing)}")
        for key, allowed in (("model", MODELS), ("engine", ENGINES)):
            if content[key] not in allowed:
                raise ValueError(f"{key} is {content[key]!r}, allowed: {', '.join(allowed)}")
        measurement = Measurement(path, content)
        _ = [measurement.place, *map(measurement.get_gain, METRICS)]
    except (ValueError, KeyError, TypeError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{path} is no measurement of inference: {error}") from None
    return measurement


def _walk(root: Path) -> Iterable[Path]:
    for folder, subfolders, files in os.walk(root):
        if "result.json" in files:
            subfolders.clear()
        else:
            yield from (Path(folder) / name for name in files if "-batch=" in name and name.endswith(ENDING))
