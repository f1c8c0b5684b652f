"""The mean of the last epochs' checkpoints: its arithmetic, which epochs are kept, and what is tested with it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from tests.training.toy import make_config, run_toy
from un.command.errors import CONFIG_FOLDER
from un.finished.evaluate import evaluate
from un.training.assembly import build
from un.training.averaging import average_states, load_tested
from un.training.callbacks.checkpoints import list_epoch_checkpoints
from un.training.run_folder import RunFolder


def evaluate_run(folder: Path, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        evaluate(compose("eval", [f"run={folder}", *overrides]))
    content: dict[str, Any] = json.loads((folder / "eval.json").read_text())
    return content


def read_states(folder: Path, *epochs: int) -> list[dict[str, Tensor]]:
    paths = [folder / f"checkpoints/epoch={epoch}.ckpt" for epoch in epochs]
    return [torch.load(path, weights_only=True)["state_dict"] for path in paths]


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_floats_are_averaged_exactly(dtype: torch.dtype) -> None:
    """Summed in the type itself, the small numbers would be lost beside the large ones."""
    states = [{"a": torch.tensor([value, 1.0], dtype=dtype)} for value in (2.0**24, 1.0, 1.0, -(2.0**24))]
    mean = average_states(iter(states))["a"]
    assert mean.dtype == dtype
    assert mean.tolist() == [0.5, 1.0]


def test_integers_are_divided_with_floor() -> None:
    """Of what is no tensor, the last counts."""
    states = [
        {"iters": torch.tensor(iters), "flag": torch.tensor(flag), "_extra_state": text}
        for iters, flag, text in (([5, -3], True, "old"), ([8, -3], False, "new"))
    ]
    mean = average_states(states)
    assert (mean["iters"].tolist(), mean["iters"].dtype) == ([6, -3], torch.int64)
    assert (mean["flag"].item(), mean["flag"].dtype) == (False, torch.bool)
    assert mean["_extra_state"] == "new"
    assert states[0]["iters"].tolist() == [5, -3]


def test_last_epochs_are_kept_and_their_mean_is_tested(tmp_path: Path) -> None:
    result = run_toy(tmp_path, "average_checkpoints=2", "trainer.max_epochs=4")
    assert list_names(tmp_path) == ["best.ckpt", "epoch=2.ckpt", "epoch=3.ckpt", "last.ckpt"]
    assert result.metric_details == {"test/*": "weights averaged over epoch=2.ckpt, epoch=3.ckpt"}
    data, module = build(make_config(tmp_path))
    first, second = read_states(tmp_path, 2, 3)
    assert first["model.norm.iters"] != second["model.norm.iters"]
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_((first[name].double() + second[name].double()) / 2)
        else:
            value.copy_((first[name] + second[name]) // 2)
    module.eval()
    batches = list(data.test_dataloader())
    loss = sum(nn.functional.cross_entropy(module.model(inputs), labels).item() for inputs, labels in batches) / 3
    assert result.metrics["test/loss"] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "epochs"),
    [
        (["trainer.max_epochs=-1", "trainer.max_steps=12"], [0, 1]),  # the third epoch is cut short
        (["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=0.4"], [0, 1, 2]),
    ],
)
def test_whole_epochs_count(
    overrides: list[str], epochs: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = run_toy(tmp_path, "average_checkpoints=5", *overrides)
    names = [f"epoch={epoch}.ckpt" for epoch in epochs]
    assert [path.name for path in list_epoch_checkpoints(tmp_path / "checkpoints")] == names
    assert result.metric_details == {"test/*": f"weights averaged over {', '.join(names)}"}
    assert f"average_checkpoints=5, but {tmp_path} has {len(names)}" in caplog.text


def test_training_without_a_whole_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    short = ("trainer.max_epochs=-1", "trainer.max_steps=3")
    averaged = run_toy(tmp_path / "a", "average_checkpoints=2", *short)
    assert "best.ckpt is tested" in caplog.text
    assert averaged.metrics == run_toy(tmp_path / "b", *short).metrics
    assert evaluate_run(tmp_path / "a")["same"]


def test_evaluation_with_other_averages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_toy(tmp_path, "average_checkpoints=3", "trainer.max_epochs=4")
    before = list_names(tmp_path)
    assert evaluate_run(tmp_path)["same"]
    assert "the same to the last bit" in capsys.readouterr().out
    best = evaluate_run(tmp_path, "average_checkpoints=0")
    assert not best["same"]
    assert (best["changes"], best["metric_details"]) == ({"average_checkpoints": 0}, {})
    assert "DIFFERENT from the run's own (asked for: average_checkpoints=0)" in capsys.readouterr().out
    two = evaluate_run(tmp_path, "average_checkpoints=2")
    assert two["metric_details"] == {"test/*": "weights averaged over epoch=2.ckpt, epoch=3.ckpt"}
    assert two["metrics"] != best["metrics"]
    assert list_names(tmp_path) == before


def test_evaluation_of_epochs_that_were_not_kept(tmp_path: Path) -> None:
    run_toy(tmp_path, "trainer.max_epochs=1")
    with pytest.raises(ValueError, match=r"average_checkpoints=2: .* kept no epochs"):
        evaluate_run(tmp_path, "average_checkpoints=2")


def test_damaged_and_foreign_epochs(tmp_path: Path) -> None:
    run_toy(tmp_path, "average_checkpoints=2", "trainer.max_epochs=2")
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match=r"epoch=0.ckpt is of another model"):
        load_tested(folder, build(make_config(tmp_path, "model.width=4"))[1], 2)
    path = list_epoch_checkpoints(folder.checkpoints)[1]
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"epoch=1.ckpt is cut short"):
        load_tested(folder, build(make_config(tmp_path))[1], 2)
