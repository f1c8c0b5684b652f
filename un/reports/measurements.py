"""What `scripts/benchmark.py inference` measures: what is planned, what its files say, and what UN gains."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from un.reports.runs import read_below
from un.reports.validation import parse

FOLDER = "benchmark_inference"  # below the folder of runs
Model = Literal["swin_tiny", "vit_small", "t2t_vit_14", "iwslt_encoder", "iwslt_beam5"]
Engine = Literal["eager", "compile", "onnxruntime"]
MODELS: tuple[Model, ...] = get_args(Model)
ENGINES: tuple[Engine, ...] = get_args(Engine)
BATCHES = {"cpu": (1, 8), "cuda": (1, 64, 256)}  # by device
LAYER_NORM, FOLDED = "layernorm", "un_folded"  # the arms that are compared
METRICS = ("speed", "memory")
FILE_CONFIG = ConfigDict(strict=True)  # a file says more than is read here


@dataclass(frozen=True, order=True)
class Setting:
    """What is measured in one file."""

    model: Model
    engine: Engine
    device: str
    dtype: str
    batch: int

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.model}-{self.engine}-{self.device}-{self.dtype}-batch={self.batch}.json"

    def list_arguments(self, folder: Path) -> list[str]:
        """Returns the arguments that make `python scripts/benchmark.py` measure it into a folder."""
        choices = {"models": self.model, "engines": self.engine, "device": self.device, "dtype": self.dtype}
        arguments = {**choices, "batches": self.batch, "folder": folder}
        return ["inference", *(part for key, value in arguments.items() for part in (f"--{key}", str(value)))]


@dataclass(frozen=True, config=FILE_CONFIG)
class Arm:
    """One of the models that are compared: medians of its calls."""

    seconds: float = Field(gt=0)
    peak_megabytes: float | None = Field(gt=0)  # the most that a call holds, weights not counted


@dataclass(frozen=True, config=FILE_CONFIG)
class Arms:
    """LayerNorm and folded UN."""

    layernorm: Arm
    un_folded: Arm


@dataclass(frozen=True, config=FILE_CONFIG)
class Hardware:
    """The machine; `gpu` is empty without one."""

    cpu: str
    gpu: list[str]


@dataclass(frozen=True, config=FILE_CONFIG)
class Measurement:
    """A file of the benchmark."""

    model: Model
    engine: Engine
    device: Literal["cpu", "cuda"]
    dtype: str
    batch: int
    threads: int
    hardware: Hardware
    arms: Arms

    @property
    def setting(self) -> Setting:
        return Setting(self.model, self.engine, self.device, self.dtype, self.batch)

    @property
    def place(self) -> str:
        """The hardware, e.g. "NVIDIA A100-SXM4-40GB"."""
        if self.device == "cuda" and self.hardware.gpu:
            return self.hardware.gpu[0]
        return f"{self.hardware.cpu} ({self.threads} threads)"

    def get_gain(self, metric: str) -> float | None:
        """Returns the percent by which folded UN is faster (in calls per second) or needs less memory than LayerNorm.

        Args:
            metric: "speed" or "memory".

        Returns:
            The gain; None where it was not measured.
        """
        if metric == "speed":
            return 100 * (self.arms.layernorm.seconds / self.arms.un_folded.seconds - 1)
        before, after = self.arms.layernorm.peak_megabytes, self.arms.un_folded.peak_megabytes
        return None if before is None or after is None else 100 * (1 - after / before)


def find_obstacle(model: str, engine: str, device: str, dtype: str) -> str:
    """Returns why something cannot be measured; empty where it can."""
    if model == "iwslt_beam5" and engine != "eager":
        return "a search with a growing cache is not a fixed graph"
    if engine == "onnxruntime" and device != "cpu":
        return "onnxruntime is only measured on the CPU"
    if engine == "onnxruntime" and dtype != "float32":
        return "graphs are exported in float32"
    return ""


def plan_settings(models: Iterable[Model], device: str) -> list[Setting]:
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
    return parse(Measurement, path.read_bytes(), f"{path} is not a measurement of inference")


def _walk(root: Path) -> Iterable[Path]:
    for folder, subfolders, files in os.walk(root):
        if "result.json" in files:
            subfolders.clear()
        else:
            yield from (Path(folder) / name for name in files if "-batch=" in name and name.endswith(".json"))
