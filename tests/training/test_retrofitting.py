"""Training on from a run's model without its norms: a run like any other, taught by the original."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig, OmegaConf

from tests.training.toy import make_config, make_identity, run_toy
from un.command.errors import UserError
from un.norms import UnifiedNorm
from un.training import train as training
from un.training.assembly import build, build_trainer
from un.training.original import resolve_original
from un.training.run_folder import RunFolder
from un.training.weights import read_model_weights

LAYERNORM = {"norm": {"_target_": None, "_partial_": True}}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished LayerNorm run."""
    folder = tmp_path_factory.mktemp("runs") / "toy/norm=layernorm/seed=0"
    run_toy(folder, "trainer.max_epochs=2", **LAYERNORM)
    return folder


def resolve(folder: Path, *overrides: str) -> DictConfig:
    config = make_config(folder, *overrides)
    resolve_original(config, make_identity(folder))
    return config


def test_the_norm_starts_as_the_fitted_map_of_the_tested_weights(original: Path) -> None:
    module = build(make_config(original, f"retrofit={original}"))[1]
    assert isinstance(module.model.norm, UnifiedNorm)
    weights = read_model_weights(original / "checkpoints/best.ckpt")
    assert torch.equal(module.model.body.weight, weights["body.weight"])
    assert module.distillation.logits_weight == 1.0
    assert not torch.equal(module.model.norm.running_var, torch.ones(8))
    assert not any("distillation" in name for name in module.state_dict())


class Interruption(Callback):
    def on_train_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("killed")


@pytest.mark.parametrize("options", [(), ("retrofit_options.hidden_weight=0.5", "retrofit_options.every=2")], ids=str)
def test_a_run_that_resumes_as_if_it_had_not_stopped(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    def build_interrupted(*arguments: Any) -> Trainer:
        trainer = build_trainer(*arguments)
        trainer.callbacks.insert(0, Interruption())
        return trainer

    chosen = (f"retrofit={original}", "trainer.max_epochs=2", *options)
    whole, broken = run_toy(tmp_path / "whole", *chosen), tmp_path / "broken"
    with monkeypatch.context() as patch:
        patch.setattr(training, "build_trainer", build_interrupted)
        with pytest.raises(RuntimeError, match="killed"):
            run_toy(broken, *chosen)
    assert run_toy(broken, *chosen).metrics == whole.metrics
    ends = (read_model_weights(RunFolder(folder).last) for folder in (tmp_path / "whole", broken))
    for left, right in zip(*(weights.values() for weights in ends), strict=True):
        assert torch.equal(left, right)


def test_no_step_at_all_gives_a_run_too(original: Path, tmp_path: Path) -> None:
    config = resolve(tmp_path, f"retrofit={original}", "retrofit_options.steps=0")
    assert config.trainer.max_steps == 0
    result = run_toy(tmp_path, f"retrofit={original}", "trainer.max_steps=0")
    assert result.steps == 0
    assert result.metrics["test/acc1"] > 0
    assert RunFolder(tmp_path).best.is_file()


def test_steps_are_a_share_of_the_original_and_a_word_names_it(original: Path) -> None:
    """The run beside this one with LayerNorm and the same seed."""
    beside = original.parents[1] / "norm=un,retrofit=layernorm" / "seed=0"
    config = resolve(beside, "retrofit=layernorm", "retrofit_options.steps=0.5")
    assert config.retrofit == str(original)
    assert config.trainer.max_steps == 5


def test_a_training_on_is_short_and_so_is_its_schedule(original: Path, tmp_path: Path) -> None:
    """Unless the command line says otherwise."""
    config = resolve(tmp_path, f"retrofit={original}")
    assert config.trainer.max_steps == 1
    assert config.scheduler._target_ == "un.training.short_schedule.create_short_schedule"
    identity = replace(make_identity(tmp_path), overrides=("trainer.max_epochs=2", "scheduler=cosine"))
    config = make_config(tmp_path, f"retrofit={original}")
    before = config.scheduler.copy()
    resolve_original(config, identity)
    assert (config.trainer.max_steps, config.scheduler) == (-1, before)
    checkpoint = resolve(tmp_path, f"retrofit={original}/checkpoints/best.ckpt")
    assert checkpoint.trainer.max_steps == -1


def test_what_is_not_retrofitted_is_no_other_run(tmp_path: Path) -> None:
    assert resolve(tmp_path).retrofit_options is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("retrofit={original}", "norm._target_=null"), "norm=layernorm keeps them"),
        (("retrofit={original}", "init_weights=other.ckpt"), "are two starts"),
        (("retrofit=nowhere",), "nowhere is no run folder and no checkpoint"),
        (("retrofit=layernorm",), "is no run folder and no checkpoint"),
        (("retrofit={original}/checkpoints/best.ckpt", "retrofit_options.steps=0.1"), "is a share of a run's steps"),
        (("retrofit={original}/checkpoints",), "is not a run folder: it has no config.yaml"),
    ],
)
def test_refuses_before_anything_is_built(
    original: Path, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        resolve(tmp_path, *(text.format(original=original) for text in overrides))
    assert "\n" not in str(caught.value)


def test_refuses_unfinished_and_diverged_originals(original: Path, tmp_path: Path) -> None:
    OmegaConf.save(make_config(tmp_path), tmp_path / "config.yaml")
    with pytest.raises(UserError, match="is not finished"):
        resolve(tmp_path, f"retrofit={tmp_path}")
    run_toy(tmp_path / "diverged", "task.explode_at=2", **LAYERNORM)
    with pytest.raises(UserError, match="diverged at step 2"):
        resolve(tmp_path, f"retrofit={tmp_path / 'diverged'}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.width=16",), "is of another model: it has other shapes for body.weight"),
        (("data.meaning=other",), r"retrofit=.* cannot be used: meaning 'other'"),
        (("retrofit_options.method=magic",), "retrofit_options.method=magic"),
        (("retrofit_options.calibration_batches=0",), "retrofit_options.calibration_batches=0"),
        (("retrofit_options.speed=1",), "retrofit_options has no option 'speed'"),
        (("retrofit_options.calibration_batches=1",), "norm is given 4 rows .* fewer than its 8 channels"),
        (("norm._target_=un.norms.RMSNorm", "~"), "fixed map at inference, not RMSNorm"),
    ],
)
def test_refuses_what_does_not_go_together(original: Path, overrides: tuple[str, ...], message: str) -> None:
    config = make_config(original, f"retrofit={original}", *(text for text in overrides if text != "~"))
    if "~" in overrides:
        config.norm = {"_target_": config.norm._target_, "_partial_": True}
    with pytest.raises(ValueError, match=message) as caught:
        build(config)
    assert "\n" not in str(caught.value)
