"""`final_statistics=train`: what is measured, on which weights, and who uses it afterwards."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from tests.training.test_averaging import evaluate_run, read_states
from tests.training.toy import ToyTask, make_config, run_toy
from un.command.checks import check_config
from un.command.errors import CONFIG_FOLDER, UserError
from un.finished.open_run import open_run
from un.norms import BatchNorm, UnifiedNorm
from un.training.assembly import build
from un.training.averaging import average_states
from un.training.weights import read_checkpoint

NOTE = "inference statistics measured again over the training set"
MEASURED = "model.norm.running_var"


def read_state(folder: Path, name: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = read_checkpoint(folder / "checkpoints" / f"{name}.ckpt")["state_dict"]
    return state


def measure(folder: Path, state: dict[str, Tensor], num_batches: int | None = None) -> Tensor:
    """The second moment (C,) at the norm over the training examples, by hand."""
    data, module = build(make_config(folder))
    module.load_state_dict(state)
    images = torch.cat([inputs for inputs, _ in list(data.make_loader("train", training=False))[:num_batches]])
    moment: Tensor = module.model.body(images).double().square().mean(0)
    return moment.float()


def check_state(tested: dict[str, Tensor], expected: dict[str, Tensor], moment: Tensor) -> None:
    """Nothing but the statistics differs."""
    torch.testing.assert_close(tested[MEASURED], moment)
    assert not torch.allclose(tested[MEASURED], expected[MEASURED], rtol=1e-3)
    assert [name for name, value in expected.items() if not torch.equal(value, tested[name])] == [MEASURED]


def test_statistics_of_the_best_weights_are_tested(tmp_path: Path) -> None:
    plain = run_toy(tmp_path / "plain")
    result = run_toy(tmp_path / "final", "final_statistics=train")
    assert result.metric_details == {"test/*": NOTE}
    best = read_state(tmp_path / "final", "best")
    check_state(read_state(tmp_path / "final", "tested"), best, measure(tmp_path, best))
    of_plain = read_state(tmp_path / "plain", "best")
    assert all(torch.equal(value, of_plain[name]) for name, value in best.items())
    for name, value in plain.metrics.items():
        assert (result.metrics[name] == value) == name.startswith("val/")
    assert evaluate_run(tmp_path / "final")["same"]


def test_statistics_of_averaged_weights_are_tested(tmp_path: Path) -> None:
    result = run_toy(tmp_path, "final_statistics=train", "average_checkpoints=2", "trainer.limit_train_batches=3")
    assert result.metric_details == {"test/*": f"weights averaged over epoch=1.ckpt, epoch=2.ckpt; {NOTE}"}
    mean = average_states(iter(read_states(tmp_path, 1, 2)))
    check_state(read_state(tmp_path, "tested"), mean, measure(tmp_path, mean, num_batches=3))
    evaluation = evaluate_run(tmp_path)
    assert evaluation["same"]
    assert evaluation["metric_details"] == result.metric_details
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        run = open_run(compose("eval", [f"run={tmp_path}"]))
    assert run.tested == ["epoch=1.ckpt", "epoch=2.ckpt"]
    with pytest.raises(UserError, match=r"average_checkpoints=0: the statistics of .* and for no others"):
        evaluate_run(tmp_path, "average_checkpoints=0")


class OtherModelTask(ToyTask):
    """Is tested with a model that trains no further, as an average of weights."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        layers = [nn.Linear(8, 8), UnifiedNorm(8), nn.Linear(8, 8), BatchNorm(8), nn.Linear(8, 3)]
        self.other = nn.Sequential(*layers).requires_grad_(False)

    @property
    def inference_model(self) -> nn.Module:
        return self.other


def test_only_the_model_that_is_tested_is_measured(tmp_path: Path) -> None:
    """Each of its norms behind the new statistics of those before it."""
    task = "task._target_=tests.training.test_final_statistics.OtherModelTask"
    run_toy(tmp_path, "final_statistics=train", "trainer.max_epochs=1", task)
    tested, best = (read_state(tmp_path, name) for name in ("tested", "best"))
    changed = [name for name, value in best.items() if not torch.equal(value, tested[name])]
    assert changed == ["other.1.running_var", "other.3.running_mean", "other.3.running_var"]
    data, module = build(make_config(tmp_path, task))
    module.load_state_dict(tested)
    images = torch.cat([inputs for inputs, _ in data.make_loader("train", training=False)])
    seen = module.other.eval()[:3](images)
    torch.testing.assert_close(tested["other.3.running_mean"], seen.mean(0))
    torch.testing.assert_close(tested["other.3.running_var"], seen.var(0, correction=0))


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ({"final_statistics": "test"}, "final_statistics=test must be train or null"),
        ({"final_statistics": True}, "final_statistics=true must be train or null"),
        ({"final_statistics": "train", "norm": None}, "running statistics, and norm=layernorm has none"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is_built(
    tmp_path: Path, wanted: dict[str, Any], part: str
) -> None:
    config = OmegaConf.merge(make_config(tmp_path), {key: value for key, value in wanted.items() if value is not None})
    if "norm" in wanted:
        config.norm = {"_target_": None}
    with pytest.raises(UserError, match=part):
        check_config(config)


def test_norms_without_statistics_are_told_before_the_training(tmp_path: Path) -> None:
    norm = {"_target_": "un.norms.RMSNorm", "_partial_": True}
    with pytest.raises(UserError, match="final_statistics=train needs a norm with running statistics"):
        run_toy(tmp_path, "final_statistics=train", norm=norm)
    assert not (tmp_path / "metrics.csv").exists()
