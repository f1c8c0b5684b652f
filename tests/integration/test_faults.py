"""Runs and sweeps that are killed at any moment, and disks that fail: what they leave is whole, and all is resumed."""

import errno
import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import un.files
import un.training.train
import un.vision.data
import un.vision.models
import un.vision.module
from tests.integration.forked import finish, start
from tests.outcomes import check_same, count_steps, list_run_folders, read_outcome
from un.reports.result import read_result

pytestmark = pytest.mark.timeout(1800)
# A training that often writes checkpoints, with all that draws numbers or keeps a state.
SETTINGS = ("data.limit=160", "data.batch_size=16", "trainer.max_epochs=3", "trainer.accelerator=cpu", "model.depth=1")
SETTINGS += ("trainer.log_every_n_steps=1", "callbacks.checkpoints.every_n_steps=3", "average_checkpoints=2")
SETTINGS += ("task.ema_decay=0.9", "task.mixup={mixup_alpha: 0.4}", "model.drop_path_rate=0.1")
TRANSLATION = (
    *("experiment=phrasebook_tiny", "data.limit=160", "data.bpe_merges=50", "task.beam=2", "task.max_len_b=8"),
    *("trainer.max_epochs=3", "trainer.accumulate_grad_batches=2", "average_checkpoints=2", "trainer.accelerator=cpu"),
    *("trainer.log_every_n_steps=1", "callbacks.checkpoints.every_n_steps=3"),
)
COMMANDS = {"run": SETTINGS, "sweep": ("-m", "norm=un,layernorm", *SETTINGS), "translation": TRANSLATION}
SEED = 20220803  # of the random moments
FILES = ("config.yaml", "preprocessor", "metrics.csv", "last.ckpt", "best.ckpt", "epoch=", "result.json")
OFTEN_WRITTEN = ("metrics.csv", "last.ckpt")  # these are hit the second time, when there is an older one


def check_whole(runs: Path) -> None:
    for path in runs.rglob("result.json"):
        read_result(path)
    for path in runs.rglob("*.ckpt"):
        torch.load(path, weights_only=True)


def check_outcomes(runs: Path, whole: Path) -> None:
    """Both hold the same runs, each with the same outcome."""
    folders = [folder.relative_to(whole) for folder in list_run_folders(whole)]
    assert [folder.relative_to(runs) for folder in list_run_folders(runs)] == folders
    for folder in folders:
        check_same(read_outcome(runs / folder), read_outcome(whole / folder))


def test_killed_between_two_steps(tmp_path: Path) -> None:
    finish((*SETTINGS, f"paths.runs={tmp_path / 'whole'}"))
    command = (*SETTINGS, f"paths.runs={tmp_path / 'killed'}")
    killed = start(command)
    while killed.process.exitcode is None and count_steps(tmp_path / "killed") < 7:
        time.sleep(0.01)
    killed.kill_group()
    assert not list((tmp_path / "killed").rglob("result.json"))
    finish(command)
    (log,) = (tmp_path / "killed").rglob("train.log")
    assert "resuming" in log.read_text()
    check_outcomes(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow  # each kind is started six times
@pytest.mark.parametrize("kind", COMMANDS)
def test_killed_at_random_moments(kind: str, tmp_path: Path) -> None:
    begin = time.monotonic()
    finish((*COMMANDS[kind], f"paths.runs={tmp_path / 'whole'}"))
    seconds, draw = time.monotonic() - begin, random.Random(SEED)
    command = (*COMMANDS[kind], f"paths.runs={tmp_path / 'killed'}")
    for _ in range(4):
        killed = start(command)
        killed.process.join(draw.uniform(0, seconds / 2))
        killed.kill_group()
        check_whole(tmp_path / "killed")
    finish(command)
    check_outcomes(tmp_path / "killed", tmp_path / "whole")


def strike(name: str, moment: str) -> None:
    """Lets this process fail while it writes the file of a run that begins with a name, or one in a folder of it.

    A file is written beside its place and renamed: the process is killed "inside" (half of the file is on the disk),
    "before" or "after" the rename, or the disk is "full".
    """
    left = 2 if name in OFTEN_WRITTEN else 1

    def is_due(path: str) -> bool:
        nonlocal left
        is_meant = any(part.startswith(name) for part in Path(path).parts[-2:])
        left -= is_meant
        return is_meant and left == 0

    def fsync(descriptor: int) -> None:
        if moment in ("inside", "full") and is_due(os.readlink(f"/proc/self/fd/{descriptor}")):
            if moment == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        os.fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        is_hit = moment in ("before", "after") and is_due(str(target))
        if is_hit and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        os.replace(source, target)
        if is_hit:
            os.kill(os.getpid(), signal.SIGKILL)

    un.files.os = SimpleNamespace(fsync=fsync, replace=replace)  # type: ignore[assignment]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("whole")
    finish((*SETTINGS, f"paths.runs={runs}"))
    return runs


@pytest.mark.slow  # dozens of runs of some seconds
@pytest.mark.parametrize("moment", ["inside", "before", "after", "full"])
def test_faults_while_writing_each_file(moment: str, whole: Path, tmp_path: Path) -> None:
    command = (*SETTINGS, f"paths.runs={tmp_path}")
    for name in FILES:
        code, errors = start(command, partial(strike, name, moment)).wait()
        if moment == "full":
            assert code == 2, (name, errors)
            (line,) = errors.splitlines()
            assert line.startswith("error: ")
            assert name in line
            assert line.endswith(": No space left on device")
        else:
            assert code == -signal.SIGKILL, (name, errors)
        check_whole(tmp_path)
    finish(command)
    check_outcomes(tmp_path, whole)
