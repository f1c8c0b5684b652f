"""Assembly and training of the toy task; runs of the real task are in tests/integration."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from tests.training.toy import ToyModel, make_config, make_identity, run_toy
from un.command.checks import check_config
from un.command.errors import UserError
from un.norms import UnifiedNorm
from un.training.assembly import build, build_norm_factory
from un.training.train import train
from un.training.weights import read_model_weights


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_result_is_of_the_best_checkpoint(tmp_path: Path) -> None:
    result = run_toy(tmp_path)
    scores = [float(row["val/acc1"]) for row in read_rows(tmp_path) if row["val/acc1"]]
    assert result.metrics["val/acc1"] == max(scores)
    assert result.best_epoch == scores.index(max(scores))
    assert result.best_step == 5 * (result.best_epoch + 1)
    assert result.steps == 15
    assert result.parameters == sum(parameter.numel() for parameter in ToyModel(3).parameters())
    module = build(make_config(tmp_path))[1]
    module.load_state_dict(torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)["state_dict"])
    module.eval()
    batches = list(build(make_config(tmp_path))[0].test_dataloader())
    correct = sum((module.model(inputs).argmax(1) == labels).sum().item() for inputs, labels in batches)
    assert result.metrics["test/acc1"] == pytest.approx(100 * correct / 24)


def test_rows_of_norms_and_losses(tmp_path: Path) -> None:
    run_toy(tmp_path, "trainer.log_every_n_steps=5", "callbacks.watch_norms.every_n_steps=4")
    rows = read_rows(tmp_path)
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [5, 10, 15]
    assert [int(row["step"]) for row in rows if row["norm/norm/window_ratio"]] == [4, 8, 12]
    assert [(int(row["epoch"]), int(row["step"])) for row in rows if row["val/loss"]] == [(0, 5), (1, 10), (2, 15)]


def test_layernorm_leaves_the_model_untouched(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config.norm = {"_target_": None}
    model = build(config)[1].model
    torch.manual_seed(config.seed)
    expected = ToyModel(3).state_dict()
    assert type(model.norm) is nn.LayerNorm
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


class PaddedModel(ToyModel):
    """Notes what it is told about masks."""

    told: bool | None = None

    def use_pad_mask(self, enabled: bool) -> None:
        assert isinstance(self.norm, UnifiedNorm)  # told when the norms are in place
        self.told = enabled


def test_models_with_padding_are_told_whether_norms_see_it(tmp_path: Path) -> None:
    config = make_config(tmp_path, "surgery.pad_mask=false", "model._target_=tests.training.test_train.PaddedModel")
    assert build(config)[1].model.told is False
    config.norm = {"_target_": None}
    assert build(config)[1].model.told is None


def save(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def test_outside_weights_come_before_the_norms(tmp_path: Path) -> None:
    outside = ToyModel(3)
    nn.init.uniform_(outside.norm.weight)
    path = save(tmp_path / "weights.pth", {"model": outside.state_dict()})
    model = build(make_config(tmp_path, f"init_weights={path}"))[1].model
    assert isinstance(model.norm, UnifiedNorm)
    assert torch.equal(model.norm.weight, outside.norm.weight)
    assert torch.equal(model.body.weight, outside.body.weight)


def test_weights_with_norm_state_come_after_the_norms(tmp_path: Path) -> None:
    run_toy(tmp_path / "first")
    best = tmp_path / "first/checkpoints/best.ckpt"
    saved = read_model_weights(best)
    model = build(make_config(tmp_path, f"init_weights={best}"))[1].model
    assert torch.equal(model.norm.running_var, saved["norm.running_var"])
    assert model.norm.iters.item() > 0
    model = build(make_config(tmp_path, f"init_weights={best}", "surgery.reset_steps=true"))[1].model
    assert model.norm.iters.item() == 0


def test_head_for_other_classes_is_left_out(tmp_path: Path) -> None:
    outside = ToyModel(7)
    path = save(tmp_path / "weights.pth", outside.state_dict())
    model = build(make_config(tmp_path, f"init_weights={path}"))[1].model
    assert model.head.weight.shape == (3, 8)
    assert torch.equal(model.body.weight, outside.body.weight)
    path = save(tmp_path / "wide.pth", ToyModel(7, width=16).state_dict())
    with pytest.raises(
        ValueError, match=r"another model: it has other shapes for body.weight \(16, 8\) instead of \(8, 8\)"
    ):
        build(make_config(tmp_path, f"init_weights={path}"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"a": torch.zeros(2)},
            "of another model: it lacks body.weight, body.bias, norm.weight and 10 more, has unknown a",
        ),
        ({"epoch": 3}, "holds no weights"),
        ([1], "it holds a list"),
        (UserError, r"is refused: it holds un.command.errors.UserError, not a tensor .* can run any code"),
    ],
)
def test_wrong_weights(content: Any, message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "weights.pth", content)
    with pytest.raises(ValueError, match=message) as error:
        build(make_config(tmp_path, f"init_weights={path}"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x80\x02."])
def test_foreign_bytes_are_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cut short or not a checkpoint") as error:
        read_model_weights(path)
    assert "\n" not in str(error.value)


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    state = {"model.a": torch.zeros(1), "ema.module.a": torch.ones(1)}
    assert read_model_weights(Path(save(tmp_path / "a.ckpt", {"state_dict": state}))) == {"a": torch.ones(1)}
    published = {"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": {"a": torch.ones(1)}}
    assert read_model_weights(Path(save(tmp_path / "b.pth", published))) == {"a": torch.ones(1)}


def test_checkpoint_of_another_model(tmp_path: Path) -> None:
    run_toy(tmp_path, "trainer.max_epochs=1")
    (tmp_path / "result.json").unlink()
    with pytest.raises(ValueError, match=r"last[.]ckpt is of another model"):
        train(make_config(tmp_path, "model.width=4"), make_identity(tmp_path))


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (
            {"_target_": "un.norms.UnifiedNorm", "_partial_": True, "window": 0},
            "norm: window must be at least 1, got 0",
        ),
        ({"_target_": "torch.nn.LayerNorm", "_partial_": True, "epsilon": 1}, "norm has no option 'epsilon'"),
    ],
)
def test_norm_is_tried_first(norm: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_norm_factory(OmegaConf.create(norm))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1.5", "seed=1.5 must be an integer of at least 0"),
        ("trainer.max_steps=0", "trainer.max_steps=0 must be an integer of at least 1 or -1"),
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches=0 must be a number above 0 or null"),
        ("trainer.max_epochs=-1", "both unlimited"),
    ],
)
def test_values_are_checked_first(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(make_config(tmp_path, override))


def test_part_without_target_and_misspelt_option(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task has no _target_"):
        build(OmegaConf.merge(make_config(tmp_path), {"task": {"_target_": None}}))
    with pytest.raises(ValueError, match="model has no option 'widht'; did you mean 'width'"):
        build(make_config(tmp_path, "model.widht=3"))
