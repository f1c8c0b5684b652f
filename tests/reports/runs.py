"""Made-up results in the layout of run folders."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from un.reports.measurements import Measurement, Setting, read_measurement
from un.reports.result import SCHEMA_VERSION, Result, write_json, write_result
from un.reports.runs import Run

RESULT = Result(
    status="finished",
    task="un.vision.module.ImageClassification",
    experiment="digits_vit",
    norm={"choice": "un"},
    model={},
    data={},
    seed=0,
    overrides=[],
    metrics={},
    best_epoch=0,
    best_step=1,
    diverged_step=None,
    steps=1,
    wall_time_seconds=120.0,
    parameters=1,
    peak_memory_bytes=1,
    train_samples_per_second=1.0,
    git={"commit": "0123456789abcdef", "dirty": False},
    packages={},
    hardware={},
    schema_version=SCHEMA_VERSION,
)


def make_run(root: Path, setting: str = "norm=un", seed: int = 0, value: float | None = 50.0, **changes: Any) -> Run:
    """Writes a run folder; `value` is its test/acc1, None for a run that diverged."""
    result = replace(
        RESULT,
        seed=seed,
        norm={"choice": setting.split(",")[0].removeprefix("norm=")},
        metrics={"val/acc1": 1.0, "test/loss": 0.5, "test/acc1": value} if value is not None else {},
        status="finished" if value is not None else "diverged",
        diverged_step=None if value is not None else 7,
    )
    result = replace(result, **changes)
    folder = root / result.experiment / setting / f"seed={seed}"
    folder.mkdir(parents=True)
    write_result(result, folder / "result.json")
    return Run(folder, result)


def write_curve(run: Run, values: list[float], metric: str = "val/acc1") -> None:
    """Writes a metrics.csv with training rows between the validations."""
    lines = [f"epoch,step,train/loss,{metric}"]
    for index, value in enumerate(values):
        lines += [f"{index},{10 * index + 5},0.5,", f"{index},{10 * index + 10},,{value}"]
    (run.folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def make_measurement(
    root: Path,
    model: str = "swin_tiny",
    engine: str = "eager",
    batch: int = 1,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    seconds: tuple[float, float] = (0.12, 0.1),
    megabytes: tuple[float, float] | None = (10.0, 8.0),
    more: Mapping[str, float] | None = None,
    benchmark: str = "inference",
) -> Measurement:
    """Writes a file as a benchmark does; pairs are of LayerNorm and of folded UN, `more` the seconds of other arms."""
    setting = Setting(model, engine, device, dtype, batch, benchmark=benchmark)
    arms = {
        arm: {"seconds": seconds[index], "peak_megabytes": megabytes and megabytes[index]}
        for index, arm in enumerate(("layernorm", "un_folded"))
    }
    arms |= {
        arm: {"seconds": other, "peak_megabytes": megabytes and megabytes[0]} for arm, other in (more or {}).items()
    }
    hardware = {"cpu": "a CPU", "threads": 2, "gpu": ["a GPU"] if device == "cuda" else []}
    root.mkdir(parents=True, exist_ok=True)
    write_json({**vars(setting), "threads": 2, "hardware": hardware, "arms": arms}, root / setting.file)
    return read_measurement(root / setting.file)
