"""Measurements by `scripts/benchmark.py inference` and `training`: which are planned, and what their files hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from un.reports.runs import read_below
from un.reports.validation import parse

Benchmark = Literal["inference", "training"]
FOLDERS: dict[Benchmark, str] = {"inference": "benchmark_inference", "training": "benchmark_training"}  # below the runs
Model = Literal["swin_tiny", "vit_small", "t2t_vit_14", "iwslt_encoder", "iwslt_beam5", "iwslt_transformer"]
Engine = Literal["eager", "cuda_graph", "compile_norms", "compile", "onnxruntime"]
Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "float16", "bfloat16", "int8"]
MODELS: tuple[Model, ...] = ("swin_tiny", "vit_small", "t2t_vit_14", "iwslt_encoder", "iwslt_beam5")
TRAINED_MODELS: tuple[Model, ...] = ("vit_small", "iwslt_transformer")
ENGINES: tuple[Engine, ...] = ("eager", "cuda_graph", "compile", "onnxruntime")
TRAINING_ENGINES: tuple[Engine, ...] = ("eager", "compile_norms", "cuda_graph", "compile")
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
DEVICES: tuple[Device, ...] = get_args(Device)
LAYER_NORM, ELEMENTARY, FOLDED, IDENTITY = "layernorm", "layernorm_elementary", "un_folded", "identity"
UN, BATCH_NORM = "un", "batchnorm"
# Metric -> an arm, the one it is compared with, and in what. Inference shows gains in percent, training shows ratios.
METRICS: dict[Benchmark, dict[str, tuple[str, str, str]]] = {
    "inference": {
        "speed": (FOLDED, LAYER_NORM, "seconds"),
        "speed_elementary": (FOLDED, ELEMENTARY, "seconds"),
        "speed_limit": (IDENTITY, LAYER_NORM, "seconds"),
        "memory": (FOLDED, LAYER_NORM, "peak_megabytes"),
        "memory_elementary": (FOLDED, ELEMENTARY, "peak_megabytes"),
    },
    "training": {
        "un_time": (UN, LAYER_NORM, "seconds"),
        "batchnorm_time": (BATCH_NORM, LAYER_NORM, "seconds"),
        "un_memory": (UN, LAYER_NORM, "peak_megabytes"),
        "batchnorm_memory": (BATCH_NORM, LAYER_NORM, "peak_megabytes"),
    },
}
FILE_CONFIG = ConfigDict(strict=True)  # a file holds more than is read here


class Stage(NamedTuple):
    """Part of a plan: a product, of which the batch changes slowest and the engine fastest."""

    engines: tuple[Engine, ...]
    dtypes: tuple[Dtype, ...]
    batches: tuple[int, ...]
    models: tuple[Model, ...]


GRAPH_ENGINES: tuple[Engine, ...] = ("eager", "cuda_graph")
# By device, the most telling first, for a budget may end before the plan. Compiling takes half a minute a model.
PLANS: dict[Benchmark, dict[Device, tuple[Stage, ...]]] = {
    "inference": {
        "cpu": (
            Stage(("eager", "compile", "onnxruntime"), ("float32",), (1, 8), MODELS),
            Stage(("onnxruntime",), ("int8",), (1, 8), ("swin_tiny", "vit_small", "iwslt_encoder")),
        ),
        "cuda": (
            Stage(GRAPH_ENGINES, ("float32", "float16"), (64, 1, 256), MODELS),
            Stage(GRAPH_ENGINES, ("bfloat16",), (64, 1, 256), MODELS),
            Stage(("compile",), ("float32", "float16"), (64,), ("vit_small", "iwslt_encoder")),
        ),
    },
    # Batches of images, or of sentences with 32 tokens: 4096 tokens, as published recipes have on a GPU.
    "training": {
        "cpu": (Stage(("eager", "compile_norms", "compile"), ("float32",), (8,), TRAINED_MODELS),),
        "cuda": (
            Stage(("eager",), ("bfloat16", "float32"), (128,), TRAINED_MODELS),
            Stage(("cuda_graph",), ("bfloat16", "float32"), (128,), ("vit_small",)),
            Stage(("compile_norms", "compile"), ("bfloat16", "float32"), (128,), TRAINED_MODELS),
        ),
    },
}


@dataclass(frozen=True, config=FILE_CONFIG)
class Setting:
    """What is measured in one file; batches are of images or sentences."""

    model: Model
    engine: Engine
    device: Device
    dtype: Dtype
    batch: int
    benchmark: Benchmark = Field(default="inference", kw_only=True)

    @property
    def file(self) -> str:
        """Name of the file."""
        kind = "" if self.benchmark == "inference" else f"{self.benchmark}-"
        return f"{kind}{self.model}-{self.engine}-{self.device}-{self.dtype}-batch={self.batch}.json"

    def list_arguments(self, folder: Path) -> list[str]:
        """Returns the arguments that make `python scripts/benchmark.py` measure it into a folder."""
        choices = {"models": self.model, "engines": self.engine, "device": self.device, "dtypes": self.dtype}
        arguments = {**choices, "batches": self.batch, "output": folder}
        return [self.benchmark, *(part for key, value in arguments.items() for part in (f"--{key}", str(value)))]


@dataclass(frozen=True, config=FILE_CONFIG)
class Arm:
    """One of the models that are compared: medians of its calls."""

    seconds: float = Field(gt=0)
    peak_megabytes: float | None = Field(gt=0)  # the most that a call holds, weights not counted


@dataclass(frozen=True, config=FILE_CONFIG)
class Hardware:
    cpu: str
    gpu: list[str]


@dataclass(frozen=True, config=FILE_CONFIG)
class Measurement(Setting):
    """A file of the benchmark."""

    threads: int
    hardware: Hardware
    arms: dict[str, Arm] = Field(min_length=1)

    @property
    def place(self) -> str:
        """The hardware, e.g. "NVIDIA A100-SXM4-40GB"."""
        return self.hardware.gpu[0] if self.device == "cuda" else f"{self.hardware.cpu} ({self.threads} threads)"

    @property
    def where(self) -> str:
        """The setting without model and place, for a reader."""
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.engine.replace('_', ' ')}{dtype}, batch {self.batch}"

    @property
    def label(self) -> str:
        """The setting without its model, for a reader."""
        return f"{self.where}, {self.place}"

    def get_gain(self, metric: str) -> float | None:
        """Returns how an arm compares with another; None where either was not measured.

        Args:
            metric: one of METRICS. Of inference, the percent by which an arm is faster (in calls per second) or needs
                less memory; of training, its time or memory over the other's.
        """
        compared, base, quantity = METRICS[self.benchmark][metric]
        after, before = (getattr(self.arms.get(arm), quantity, None) for arm in (compared, base))
        if before is None or after is None:
            return None
        if self.benchmark == "training":
            return after / before
        return 100 * (before / after - 1) if quantity == "seconds" else 100 * (1 - after / before)


@dataclass(frozen=True, config=FILE_CONFIG)
class Failure:
    """A file about a setting that could not be measured."""

    failure: str


def find_obstacle(model: str, engine: str, device: str, dtype: str) -> str:
    """Returns why something cannot be measured; empty where it can."""
    if model == "iwslt_beam5" and engine != "eager":
        return "a search with a growing cache is not a fixed graph"
    if model == "iwslt_transformer" and engine == "cuda_graph":
        return "fairseq asks the device whether there is padding"
    if engine == "cuda_graph" and device != "cuda":
        return "CUDA graphs need a GPU"
    if engine == "onnxruntime" and device != "cpu":
        return "onnxruntime is only measured on the CPU"
    if engine == "onnxruntime" and dtype not in ("float32", "int8"):
        return "graphs are exported in float32"
    if dtype == "int8" and engine != "onnxruntime":
        return "int8 is only measured in onnxruntime"
    return ""


def plan_settings(models: Collection[Model], device: Device, benchmark: Benchmark = "inference") -> list[Setting]:
    """Lists what the benchmark measures of these models unless told otherwise, the most telling first."""
    return [
        setting
        for stage in PLANS[benchmark][device]
        for setting in combine_settings(
            benchmark, device, stage._replace(models=tuple(model for model in models if model in stage.models))
        )
    ]


def combine_settings(benchmark: Benchmark, device: Device, stage: Stage) -> list[Setting]:
    """Lists the product of the choices, as far as it can be measured."""
    return [
        Setting(model, engine, device, dtype, batch, benchmark=benchmark)
        for batch, dtype, model, engine in product(stage.batches, stage.dtypes, stage.models, stage.engines)
        if not find_obstacle(model, engine, device, dtype)
    ]


def find_measurements(folders: Iterable[Path]) -> tuple[list[Measurement], list[str]]:
    """Reads all measurements below the folders.

    Returns:
        The measurements in the order of their models and hardware, and one line for each file that could not be read
        or says why nothing was measured.
    """
    found, problems = read_below(folders, lambda root: root.rglob("*-batch=*.json"), read_measurement)
    found.sort(key=_order)
    return found, problems


def _order(one: Measurement) -> tuple[object, ...]:
    return (
        get_args(Model).index(one.model),
        one.device == "cpu",
        one.place,
        get_args(Engine).index(one.engine),
        DTYPES.index(one.dtype),
        one.batch,
    )


def read_measurement(path: Path) -> Measurement:
    """Reads a file of the benchmark.

    Raises:
        ValueError: it is something else, of an unknown model or engine, or about a setting that could not be measured.
    """
    content = path.read_bytes()
    where = f"{path} is not a measurement"
    try:
        failure = parse(Failure, content, where).failure
    except ValueError:
        return parse(Measurement, content, where)
    raise ValueError(f"{path}: not measured, {failure}")
