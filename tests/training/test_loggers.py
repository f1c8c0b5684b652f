"""Loggers, above all Weights & Biases: what a page shows, and that nothing of it stops or holds up a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from tests.training.toy import run_toy
from un.command.errors import CONFIG_FOLDER
from un.reports.result import Result
from un.training import loggers
from un.training.loggers import build_wandb_logger, choose_wandb_mode, guard
from un.training.run_folder import RunIdentity


def fail(**keywords: Any) -> None:
    raise RuntimeError("service\nis down")


class BreakingLogger(TensorBoardLogger):
    def log_metrics(self, *arguments: Any, **keywords: Any) -> None:
        raise OSError("disk full")


def build_breaking(identity: Any) -> BreakingLogger:
    return BreakingLogger(identity.folder)


def test_broken_loggers_cost_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = {
        "down": {"_target_": "tests.training.test_loggers.fail"},
        "absent": {"_target_": "no.such.package"},
        "full": {"_target_": "tests.training.test_loggers.build_breaking"},
    }
    assert run_toy(tmp_path, "trainer.max_epochs=1", logger=logger).status == "finished"
    for text in ("logger=down failed to start; continuing without it", "logger=absent", "logger=full broke"):
        assert sum(text in record.getMessage() for record in caplog.records) == 1, text


def test_wandb_stays_offline_unless_logged_in(tmp_path: Path) -> None:
    missing = {"NETRC": str(tmp_path / "none")}
    assert choose_wandb_mode(missing) == "offline"
    assert choose_wandb_mode({**missing, "WANDB_API_KEY": "k"}) == "online"
    assert choose_wandb_mode({**missing, "WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}) == "disabled"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password k\n")
    assert choose_wandb_mode({"NETRC": str(tmp_path / "netrc")}) == "online"


@pytest.fixture(autouse=True)
def _wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_TAGS", raising=False)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Of a run with the loggers of the configs."""
    folder = tmp_path_factory.mktemp("run")
    files = [CONFIG_FOLDER / f"logger/{name}.yaml" for name in ("wandb", "tensorboard")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        result = run_toy(folder, "trainer.max_epochs=1", logger=OmegaConf.merge(*map(OmegaConf.load, files)))
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert list(folder.glob("tensorboard/events*"))
    return result


def start(identity: RunIdentity, tags: Sequence[str] = ()) -> Any:
    logger = build_wandb_logger(identity, project="p", entity=None, group=None, tags=tags)
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


def test_a_server_that_is_not_there(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(loggers, "WANDB_PATIENCE", 2)
    logger = start(make_identity(tmp_path))
    logger.log_metrics({"x": 1.0}, step=1)
    logger.log_result(result, tmp_path)
    logger.close()
    assert "does not reach its server, so the run is kept offline" in caplog.text
    assert "broke" not in caplog.text
    assert list(tmp_path.rglob("offline-run-*"))
