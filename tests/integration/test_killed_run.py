"""A real run, killed without warning at a random step, and the same command again."""

import csv
import importlib
import random
import time
from pathlib import Path

import pytest

from tests.integration.forked import finish, start
from tests.outcomes import check_same, list_run_folders, read_outcome

COMMON = ("data.batch_size=16", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu")
COMMON += ("callbacks.checkpoints.every_n_steps=3", "callbacks.watch_norms.every_n_steps=5")
# Everything that draws numbers or keeps a state besides optimizer and norms.
VISION = "vision: dropped paths, Mixup, averaged weights"
TRANSLATION = "translation: dropout, schedule, accumulation, last epochs' mean"
SETTINGS = {
    VISION: (
        "data.limit=160",
        "trainer.max_epochs=3",
        "task.ema_decay=0.9",
        "task.mixup={mixup_alpha: 0.4}",
        "model.drop_path_rate=0.1",
    ),
    TRANSLATION: (
        "experiment=phrasebook_tiny",
        "data.limit=160",
        "data.bpe_merges=50",
        "trainer.max_epochs=3",
        "trainer.accumulate_grad_batches=2",
        "average_checkpoints=2",
        "task.beam=2",
        "task.max_len_b=8",
    ),
}
SEED = 20220803  # of the step at which the process is killed


@pytest.mark.parametrize(
    "name",
    [VISION, pytest.param(TRANSLATION, marks=pytest.mark.slow)],  # fairseq takes long to load and to translate
)
def test_killed_run(name: str, tmp_path: Path) -> None:
    if name == TRANSLATION:
        importlib.import_module("un.translation.module")  # here, so that the forked processes need not
    finish((f"paths.runs={tmp_path / 'whole'}", *COMMON, *SETTINGS[name]))
    command = (f"paths.runs={tmp_path / 'killed'}", *COMMON, *SETTINGS[name])
    killed = start(command)
    step = random.Random(SEED).randrange(5, 13)
    while killed.process.exitcode is None and count_steps(tmp_path / "killed") < step:
        time.sleep(0.01)
    killed.kill_group()
    assert not list(tmp_path.rglob("killed/**/result.json"))
    finish(command)
    (log,) = (tmp_path / "killed").rglob("train.log")
    assert "resuming" in log.read_text()
    check_same(read_outcome(tmp_path / "killed"), read_outcome(tmp_path / "whole"))


def find_run(runs: Path) -> Path | None:
    return next(iter(list_run_folders(runs)), None)


def count_steps(runs: Path) -> int:
    folder = find_run(runs)
    if folder is None or not (folder / "metrics.csv").exists():
        return 0
    with (folder / "metrics.csv").open(newline="") as file:
        return max((int(row["step"] or 0) for row in csv.DictReader(file)), default=0)
