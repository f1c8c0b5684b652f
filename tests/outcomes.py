"""What a run leaves behind, to compare a run that was interrupted with one that never was."""

import csv
from pathlib import Path
from typing import Any

import torch

from un.reports.result import read_result
from un.training.callbacks.checkpoints import list_epoch_checkpoints


def list_run_folders(runs: Path) -> list[Path]:
    return sorted(path.parent for path in runs.rglob("config.yaml"))


def count_steps(runs: Path) -> int:
    """How far the first run in a folder is."""
    path = next(runs.rglob("metrics.csv"), None)
    if path is None:
        return 0
    with path.open(newline="") as file:
        return max((int(row["step"] or 0) for row in csv.DictReader(file)), default=0)


def read_outcome(runs: Path) -> dict[str, Any]:
    """Everything that the one run in a folder left, except times."""
    (folder,) = list_run_folders(runs)
    result = read_result(folder / "result.json")
    last, best = (torch.load(folder / "checkpoints" / name, weights_only=True) for name in ("last.ckpt", "best.ckpt"))
    return {
        "metrics.csv": (folder / "metrics.csv").read_text(),
        "preprocessor": {path.name: path.read_bytes() for path in (folder / "preprocessor").iterdir()},
        "result": (result.status, result.metrics, result.best_epoch, result.best_step, result.steps),
        "weights, averages and norm state": flatten(last["state_dict"]),
        "optimizer": flatten(last["optimizer_states"]),
        "scheduler": last["lr_schedulers"],
        "best": flatten(best["state_dict"]),
        "epochs": {
            path.name: flatten(torch.load(path, weights_only=True)["state_dict"])
            for path in list_epoch_checkpoints(folder / "checkpoints")
        },
    }


def check_same(outcome: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compares part by part, since all in one would make a page of numbers."""
    different = [part for part in expected if outcome[part] != expected[part]]
    assert different == []


def flatten(node: Any) -> Any:
    if isinstance(node, torch.Tensor):
        return node.tolist()
    if isinstance(node, dict):
        return {key: flatten(value) for key, value in node.items()}
    return [flatten(value) for value in node] if isinstance(node, list | tuple) else node
