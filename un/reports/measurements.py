"""Measurements by `scripts/benchmark.py inference`: which are planned, what their files hold, and what UN gains."""

from __future__ import annotations

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
Device = Literal["cpu", "cuda"]
MODELS: tuple[Model, ...] = get_args(Model)
ENGINES: tuple[Engine, ...] = get_args(Engine)
BATCHES: dict[Device, tuple[int, ...]] = {"cpu": (1, 8), "cuda": (1, 64, 256)}  # by device
LAYER_NORM, FOLDED = "layernorm", "un_folded"  # the arms that are compared
METRICS = ("speed", "memory")
FILE_CONFIG = ConfigDict(strict=True)  # a file holds more than is read here


@dataclass(frozen=True, config=FILE_CONFIG)
class Setting:
    """What is measured in one file."""

    model: Model
    engine: Engine
    device: Device
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
    layernorm: Arm
    un_folded: Arm


@dataclass(frozen=True, config=FILE_CONFIG)
class Hardware:
    cpu: str
    gpu: list[str]


@dataclass(frozen=True, config=FILE_CONFIG)
class Measurement(Setting):
    """A file of the benchmark."""

    threads: int
    hardware: Hardware
    arms: Arms

    @property
    def place(self) -> str:
        """The hardware, e.g. "NVIDIA A100-SXM4-40GB"."""
        return self.hardware.gpu[0] if self.device == "cuda" else f"{self.hardware.cpu} ({self.threads} threads)"

    def get_gain(self, metric: str) -> float | None:
        """Returns the percent by which folded UN is faster (in calls per second) or needs less memory than LayerNorm.

        Args:
            metric: one of METRICS.

        Returns:
            The gain; None where it was not measured.
        """
        before, after = self.arms.layernorm, self.arms.un_folded
        if metric == "speed":
            return 100 * (before.seconds / after.seconds - 1)
        if before.peak_megabytes is None or after.peak_megabytes is None:
            return None
        return 100 * (1 - after.peak_megabytes / before.peak_megabytes)


def find_obstacle(model: str, engine: str, device: str, dtype: str) -> str:
    """Returns why something cannot be measured; empty where it can."""
    if model == "iwslt_beam5" and engine != "eager":
        return "a search with a growing cache is not a fixed graph"
    if engine == "onnxruntime" and device != "cpu":
        return "onnxruntime is only measured on the CPU"
    if engine == "onnxruntime" and dtype != "float32":
        return "graphs are exported in float32"
    return ""


def plan_settings(models: Iterable[Model], device: Device) -> list[Setting]:
    """Lists what the benchmark measures of these models unless told otherwise."""
    choices = product(models, ENGINES, BATCHES[device])
    return [
        Setting(model, engine, device, "float32", batch)
        for model, engine, batch in choices
        if not find_obstacle(model, engine, device, "float32")
    ]


def find_measurements(folders: Iterable[Path]) -> tuple[list[Measurement], list[str]]:
    """Reads all measurements below the folders.

    Returns:
        The measurements in the order of their models, and one line for each file that could not be read.
    """
    found, problems = read_below(folders, lambda root: root.rglob("*-batch=*.json"), read_measurement)
    found.sort(key=lambda one: (MODELS.index(one.model), ENGINES.index(one.engine), one.device, one.dtype, one.batch))
    return found, problems


def read_measurement(path: Path) -> Measurement:
    """Reads a file of the benchmark.

    Raises:
        ValueError: it is something else, or of an unknown model or engine.
    """
    return parse(Measurement, path.read_bytes(), f"{path} is not a measurement of inference")
