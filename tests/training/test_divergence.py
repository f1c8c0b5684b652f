"""A run that diverges keeps its last good checkpoint and tells where its numbers broke."""

from pathlib import Path

import pytest
import torch

from tests.training.toy import run_toy

UNTOUCHED = {"_target_": None}
EPOCH = 5  # steps


@pytest.mark.parametrize(("layer", "layernorm"), [("body", False), ("norm", True), ("head", False)])
def test_the_norm_whose_counter_tells_is_named(
    layer: str, layernorm: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rare = "callbacks.checkpoints.every_n_steps=100"  # the step is seen after its weights are broken
    norm = {"norm": UNTOUCHED} if layernorm else {}
    with caplog.at_level("INFO"):
        result = run_toy(tmp_path, "task.explode_at=8", f"task.poisoned={layer}", rare, **norm)
    counted = not layernorm and layer != "head"  # what the head makes reaches no norm
    expected = "norm" if counted else None
    assert (result.status, result.diverged_step, result.diverged_layer) == ("diverged", 8, expected)
    assert "stopped: the loss became non-finite at step 8" in caplog.text
    assert (", first in norm" in caplog.text) == counted
    assert ("trainer.detect_anomaly=true" in caplog.text) == (not counted)


@pytest.mark.parametrize(("step", "poisoned"), [(3, "null"), (EPOCH, "norm"), (EPOCH + 1, "norm")])
def test_the_last_good_checkpoint_is_kept(step: int, poisoned: str, tmp_path: Path) -> None:
    """Whatever is due at or after the bad step: last.ckpt, best.ckpt, or the checkpoint of an epoch."""
    often = ("callbacks.checkpoints.every_n_steps=2", "average_checkpoints=2")
    result = run_toy(tmp_path, f"task.explode_at={step}", f"task.poisoned={poisoned}", *often)
    assert (result.status, result.diverged_step) == ("diverged", step)
    assert set(result.metrics) == ({"val/loss", "val/acc1"} if step > EPOCH else set())
    paths = sorted((tmp_path / "checkpoints").iterdir())
    names = {"last.ckpt"} | ({"best.ckpt", "epoch=0.ckpt"} if step > EPOCH else set())
    assert {path.name for path in paths} == names
    for path in paths:
        checkpoint = torch.load(path, weights_only=True)
        assert checkpoint["global_step"] < step
        assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_an_exploded_loss_is_no_matter_of_a_layer(tmp_path: Path) -> None:
    result = run_toy(tmp_path, "optimizer.lr=1e5", "callbacks.divergence.max_loss_ratio=100", "scheduler=null")
    assert result.status == "diverged"
    assert result.diverged_layer is None
    assert result.diverged_step is not None
    assert result.diverged_step < 5
