"""A run killed anywhere ends, after the same command, as one that never stopped; Lightning's restart logic included."""

import hashlib
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint

from tests.outcomes import check_same, read_outcome
from tests.training.toy import run_toy
from un.command import signals
from un.training import train as training
from un.training.assembly import build_trainer

HOOKS = {"on_train_batch_start", "on_train_batch_end", "on_validation_batch_end", "on_validation_end"}
HOOKS |= {"on_train_epoch_start", "on_train_epoch_end", "on_train_end", "on_test_batch_end"}
EVERY_OTHER = "callbacks.checkpoints.every_n_steps=2"
FEW = "data.num_batches=4"
SETTINGS = {
    "max_steps inside an epoch": [FEW, EVERY_OTHER, "trainer.max_epochs=-1", "trainer.max_steps=6"],
    "two validations per epoch": [FEW, EVERY_OTHER, "trainer.val_check_interval=0.5"],
    "validation every other epoch": ["data.num_batches=2", "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3"],
    "accumulated gradients": [EVERY_OTHER, "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=0.6"],
    "final statistics": ["final_statistics=train", "data.num_batches=2"],
    "averaged epochs of limited batches": ["trainer.limit_train_batches=3", "average_checkpoints=2"],
}


class SnapshotPoint(Checkpoint):
    """Copies the run folder at every hook; being a Checkpoint, it comes after the one that saves.

    A copy is what a process killed there leaves behind. Equal copies are kept once.
    """

    def __init__(self, folder: Path, target: Path) -> None:
        self.folder, self.target, self.copies = folder, target, dict[str, Path]()

    def __getattribute__(self, name: str) -> Any:
        return self.take if name in HOOKS else super().__getattribute__(name)

    def take(self, *arguments: Any, **keywords: Any) -> None:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".log")
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        if digest not in self.copies:
            self.copies[digest] = self.target / str(len(self.copies))
            shutil.copytree(self.folder, self.copies[digest])


def run_with_snapshots(folder: Path, target: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Runs once and returns what the run folder was at every hook."""
    point = SnapshotPoint(folder, target)

    def build_watched(*arguments: Any) -> Any:
        trainer = build_trainer(*arguments)
        trainer.callbacks.append(point)
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(training, "build_trainer", build_watched)
        run_toy(folder, *overrides)
    return list(point.copies.values())


@pytest.mark.parametrize("setting", SETTINGS)
def test_killed_anywhere(setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["trainer.max_epochs=2", *SETTINGS[setting]]
    copies = run_with_snapshots(tmp_path / "whole", tmp_path, overrides, monkeypatch)
    expected = read_outcome(tmp_path / "whole")
    assert len(copies) > 3
    for copy in copies:
        assert not (copy / "result.json").exists()
        run_toy(copy, *overrides)
        check_same(read_outcome(copy), expected)


class Interruption(Callback):
    """Sends a signal before the first batch of every process."""

    def on_train_batch_start(self, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("setting", ["two validations per epoch", "accumulated gradients"])
def test_stopped_at_every_batch(setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time the run goes on to the next place where it may stop, and at least one batch further."""
    overrides = ["trainer.max_epochs=2", *SETTINGS[setting], "callbacks.checkpoints.every_n_steps=100"]
    run_toy(tmp_path / "whole", *overrides)
    folder, steps, places = tmp_path / "stopped", [0], list[str]()

    def build_interrupted(*arguments: Any) -> Any:
        trainer = build_trainer(*arguments)
        trainer.callbacks.insert(0, Interruption())
        return trainer

    monkeypatch.setattr(training, "build_trainer", build_interrupted)
    while not (folder / "result.json").exists():
        try:
            with signals.listening():
                run_toy(folder, *overrides)
        except signals.StoppedError as stop:
            steps.append(torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"])
            places.append(stop.where)
    with signals.listening():  # forgets the last one
        pass
    for place, step in zip(places, steps[1:], strict=True):
        assert place in (f" at step {step}", "")  # nothing where the training had just ended
    assert steps == sorted(steps)
    assert len(steps) > 3
    assert read_outcome(folder) == read_outcome(tmp_path / "whole")
