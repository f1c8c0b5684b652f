"""A real process, killed without warning at a random step, and the same command again."""

import csv
import random
import signal
import time
from pathlib import Path

import pytest

from tests.integration.commands import run, start
from tests.outcomes import check_same, read_outcome

COMMON = [
    "data.limit=320",
    "data.batch_size=16",
    "trainer.max_epochs=4",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "callbacks.checkpoints.every_n_steps=7",
    "callbacks.watch_norms.every_n_steps=5",
]
# Everything that draws numbers or keeps a state besides optimizer and norms.
SETTINGS = {
    "vision: dropped paths, Mixup, averaged weights": [
        "task.ema_decay=0.9",
        "task.mixup={mixup_alpha: 0.4}",
        "model.drop_path_rate=0.1",
    ],
    "translation: dropout, schedule, accumulation, last epochs' mean": [
        "experiment=phrasebook_tiny",
        "data.bpe_merges=100",
        "trainer.accumulate_grad_batches=2",
        "average_checkpoints=2",
        "task.beam=2",
        "task.max_len_b=8",
    ],
}
SEED = 20220803  # of the step at which the process is killed


@pytest.mark.parametrize("name", SETTINGS)
def test_killed_run(name: str, tmp_path: Path) -> None:
    settings = COMMON + SETTINGS[name]
    num_steps = 4 * 320 // 16 // (2 if "accumulation" in name else 1)
    whole = start("train.py", f"paths.runs={tmp_path / 'whole'}", *settings)
    killed = start("train.py", f"paths.runs={tmp_path / 'killed'}", *settings)
    step = random.Random(SEED).randrange(10, num_steps - 10)
    while killed.poll() is None and count_steps(tmp_path / "killed") < step:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    errors = killed.communicate()[1]
    assert killed.returncode == -signal.SIGKILL, errors
    again = run("train.py", f"paths.runs={tmp_path / 'killed'}", *settings)
    assert again.code == 0, again.errors
    assert "resuming" in again.output
    errors = whole.communicate()[1]
    assert whole.returncode == 0, errors
    check_same(read_outcome(tmp_path / "killed"), read_outcome(tmp_path / "whole"))


def find_run(runs: Path) -> Path | None:
    return next((path.parent for path in runs.rglob("config.yaml")), None)


def count_steps(runs: Path) -> int:
    folder = find_run(runs)
    if folder is None or not (folder / "metrics.csv").exists():
        return 0
    with (folder / "metrics.csv").open(newline="") as file:
        return max((int(row["step"] or 0) for row in csv.DictReader(file)), default=0)
