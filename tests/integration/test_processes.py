"""Several processes: data-parallel training, lost processes and parallel sweeps, on the CPU."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import OmegaConf

from tests.integration.commands import run, start
from tests.outcomes import check_same, count_steps, read_outcome
from un.command.console import quiet_libraries
from un.reports.result import read_result
from un.training.assembly import build, build_trainer
from un.training.averaging import load_tested
from un.training.run_folder import RunFolder

FAST = ("debug=fast", "trainer.accelerator=cpu")
DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
LONG = ("data.limit=320", "data.batch_size=8", "trainer.max_epochs=4", "trainer.log_every_n_steps=1")
LONG += ("callbacks.checkpoints.every_n_steps=3", "callbacks.watch_norms.every_n_steps=5")
LAUNCHERS = {
    "lightning": ("train.py",),
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"),
}
PATIENCE = 120  # seconds that a process may outlive another one of its run; a few where there are cores for them
SEED = 20220803  # of the steps at which processes are killed


# Numbers of examples that two processes cannot share evenly.
UNEVEN = {
    "lightning": ("data.limit=333", "data.batch_size=16", "trainer.max_epochs=2", "task.ema_decay=0.8"),
    "torchrun": (
        "experiment=phrasebook_tiny",
        "norm.sync=true",
        "data.limit=333",
        "data.bpe_merges=100",
        "data.max_tokens=512",
        "trainer.max_epochs=2",
        "task.val_bleu=true",
        "task.beam=2",
        "task.max_len_b=8",
    ),
}


@pytest.mark.slow  # starts two processes, each of which imports torch
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_metrics_are_those_of_one_process(launcher: str, tmp_path: Path) -> None:
    command = (*LAUNCHERS[launcher], f"paths.runs={tmp_path}", *DDP, *UNEVEN[launcher])
    outcome = run(*command)
    assert outcome.code == 0, outcome
    assert outcome.output.count("norms replaced") == 1
    assert "is finished already" in run(*command).output
    (path,) = tmp_path.rglob("result.json")
    metrics = dict(read_result(path).metrics)
    config = OmegaConf.create(RunFolder(path.parent).read_config())
    assert config.trainer.precision == "32-true"
    config.trainer.devices, config.trainer.strategy, config.callbacks = 1, "auto", {}
    quiet_libraries()
    data, module = build(config)
    load_tested(RunFolder(path.parent), module, None)
    trainer = build_trainer(config, tmp_path / "alone", [])
    for evaluate in (trainer.validate, trainer.test):
        for name, value in evaluate(module, datamodule=data, verbose=False)[0].items():
            assert metrics.pop(name) == pytest.approx(value, rel=1e-5), name
    assert not metrics


class BufferProbe(Callback):
    """Leaves `probe-<rank>.json` in the run folder: ["train" or "val", sums of all buffers by name] by batch."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, dict[str, float]]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.note("train", pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self.note("val", pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = Path(trainer.default_root_dir) / f"probe-{trainer.global_rank}.json"
        path.write_text(json.dumps(self.notes))

    def note(self, where: str, module: LightningModule) -> None:
        self.notes.append((where, {name: buffer.double().sum().item() for name, buffer in module.named_buffers()}))


@pytest.mark.slow  # starts two processes, each of which imports torch
def test_every_process_validates_what_rank_0_saves(tmp_path: Path) -> None:
    """Also in the midst of accumulated batches, where DDP does not broadcast."""
    probe = "+callbacks.probe={_target_: tests.integration.test_processes.BufferProbe}"
    accumulation = ("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=3", "trainer.max_epochs=1")
    settings = ("data.limit=160", "data.batch_size=8", "task.ema_decay=0.8", *accumulation)
    outcome = run("train.py", f"paths.runs={tmp_path}", *DDP, *settings, probe)
    assert outcome.code == 0, outcome
    first, second = (json.loads(next(tmp_path.rglob(f"probe-{rank}.json")).read_text()) for rank in range(2))
    assert [where for where, _ in first].count("val") == 3
    for before, (where, mine), (_, other) in zip([None, *first], first, second, strict=False):
        assert any(name.startswith("ema.") for name in mine)
        if where == "val":
            assert mine == other
            assert before is not None
            assert mine == before[1]
        else:
            differing = {name.rpartition(".")[-1] for name, value in mine.items() if value != other[name]}
            assert {"running_var", "buffer_x2"} <= differing


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = tmp_path_factory.mktemp("whole")
    outcome = run("train.py", f"paths.runs={runs}", *DDP, *LONG)
    assert outcome.code == 0, outcome
    return read_outcome(runs)


@pytest.mark.slow  # starts processes twice, each of which imports torch
@pytest.mark.parametrize(("launcher", "victim"), [("lightning", 0), ("torchrun", 1)])
def test_a_process_is_killed(launcher: str, victim: int, uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    command = (*LAUNCHERS[launcher], f"paths.runs={tmp_path}", *DDP, *LONG)
    process = start(*command)
    step = random.Random(SEED + victim).randrange(10, 70)
    while process.poll() is None and count_steps(tmp_path) < step:
        time.sleep(0.01)
    ranks = find_ranks(process.pid)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[victim], signal.SIGKILL)
    killed = time.monotonic()
    _, errors = process.communicate(timeout=PATIENCE)
    while any(map(is_alive, ranks.values())):
        assert time.monotonic() - killed < PATIENCE
        time.sleep(0.1)
    assert process.returncode not in (0, None)
    if launcher == "lightning":  # the workers of torchrun are sometimes killed by their agent first
        assert "error: another process of this run ended or does not answer; run the same command to resume" in errors
        assert "Traceback" not in errors
    again = run(*command)
    assert again.code == 0, again
    assert "resuming" in again.output
    check_same(read_outcome(tmp_path), uninterrupted)


def find_ranks(parent: int) -> dict[int, int]:
    """The processes of a run by rank, of which `parent` is the first or the agent that started them."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    ranks = {}
    for pid in [parent, *map(int, listed.stdout.split())]:
        try:
            entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
        except OSError:  # ps itself
            continue
        rank = dict(entry.partition("=")[::2] for entry in entries).get("LOCAL_RANK")
        if rank is not None:
            ranks[int(rank)] = pid
    return ranks if 0 in ranks else {0: parent, **ranks}


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that its parent has not asked after yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow  # starts two processes, each of which imports torch
def test_sweep_of_runs_with_two_processes(tmp_path: Path) -> None:
    command = (*LAUNCHERS["torchrun"], "-m", f"paths.runs={tmp_path}", *DDP, *FAST, "norm=un,layernorm")
    outcome = run(*command)
    assert outcome.code == 0, outcome
    assert [read_result(path).status for path in tmp_path.rglob("result.json")] == ["finished", "finished"]


@pytest.mark.slow  # starts three processes, each of which imports torch
def test_parallel_sweep(tmp_path: Path) -> None:
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    jobs = ("-m", "norm=un,layernorm", "init_weights=null,/nowhere/best.ckpt")
    outcome = run("train.py", f"paths.runs={tmp_path}", *FAST, *launcher, *jobs)
    assert outcome.code == 2, outcome
    assert "error: /nowhere/best.ckpt: no such checkpoint" in outcome.errors
    assert [read_result(path).status for path in tmp_path.rglob("result.json")] == ["finished", "finished"]
