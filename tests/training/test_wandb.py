"""Weights & Biases: what a page shows, offline folders, and that nothing of it stops or holds up a run."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from tests.training.toy import run_toy
from un.reports.result import Result
from un.training import loggers
from un.training.loggers import build_loggers, build_wandb_logger, guard
from un.training.run_folder import RunIdentity


@pytest.fixture(autouse=True)
def _wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_TAGS", raising=False)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run_toy(tmp_path_factory.mktemp("run"), "trainer.max_epochs=1")


def start(identity: RunIdentity, tags: Sequence[str] = (), group: str | None = None) -> Any:
    logger = build_wandb_logger(identity, project="p", entity=None, group=group, tags=tags)
    guard("wandb", logger)
    return logger


def make_identity(runs: Path, **choices: str) -> RunIdentity:
    folder = runs / "digits_vit/norm=un,norm.window=2/seed=3"
    folder.mkdir(parents=True)
    return RunIdentity(folder, "digits_vit", {"norm": "un", **choices}, ("norm.window=2", "seed=3"))


def test_a_page_shows_what_the_run_is(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_TAGS", "cifar10_small")
    identity = make_identity(tmp_path, ablation="un_window")
    (identity.folder / "figures").mkdir()
    Figure().savefig(identity.folder / "figures/outliers.png")
    logger = start(identity, tags=["mine"])
    page = logger.experiment
    assert (page.group, page.name) == ("digits_vit/un_window", "norm=un,norm.window=2/seed=3")
    assert set(page.tags) == {"mine", "cifar10_small"}
    logger.log_result(result, identity.folder)
    assert {key: page.summary[key] for key in ("status", "steps")} == {"status": "finished", "steps": 5}
    assert page.summary["metrics"]["test/acc1"] == result.metrics["test/acc1"]
    assert page.summary["figures/outliers"]["_type"] == "image-file"
    logger.close()
    (folder,) = identity.folder.glob("wandb/offline-run-*")
    assert list(folder.glob("files/media/images/figures/outliers*.png"))
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(folder)]
    synced = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Would sync 1 run" in synced.stdout + synced.stderr


def test_the_group_without_an_ablation_and_as_asked_for(tmp_path: Path) -> None:
    identity = make_identity(tmp_path)
    for asked, group in ((None, "digits_vit"), ("mine", "mine")):
        logger = start(identity, group=asked)
        assert logger.experiment.group == group
        logger.close()


def test_a_server_that_is_not_there(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(loggers, "WANDB_PATIENCE", 2)
    begin = time.perf_counter()
    logger = start(make_identity(tmp_path))
    logger.log_metrics({"x": 1.0}, step=1)
    logger.log_result(result, tmp_path)
    logger.close()
    assert time.perf_counter() - begin < 60
    assert "does not reach its server, so the run is kept offline" in caplog.text
    assert "broke" not in caplog.text
    assert list(tmp_path.rglob("offline-run-*"))


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    file = Path(__file__).parents[2] / "configs/logger/wandb.yaml"
    config = OmegaConf.create({"logger": OmegaConf.load(file)})
    assert build_loggers(config, make_identity(tmp_path)) == []
    assert "logger=wandb failed to start; continuing without it" in caplog.text


def test_a_broken_summary_costs_a_warning(result: Result, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    identity = make_identity(tmp_path)
    (identity.folder / "figures").mkdir()
    (identity.folder / "figures/torn.png").write_bytes(b"no picture")
    logger = start(identity)
    logger.log_result(result, identity.folder)
    logger.close()
    assert "logger=wandb broke; continuing without it" in caplog.text
