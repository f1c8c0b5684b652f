"""Every experiment composes, builds and runs; tests/reports/test_recipes.py compares its values with published ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from un.command.checks import check_config
from un.command.errors import CONFIG_FOLDER, UserError
from un.training.assembly import build, build_trainer
from un.vision.batches import EpochSampler

EXPERIMENTS = sorted(path.stem for path in (CONFIG_FOLDER / "experiment").glob("*.yaml"))
VISION = [name for name in EXPERIMENTS if name.startswith(("digits", "cifar", "imagenet", "my_images"))]
CONFIG_FILES = sorted(path for path in CONFIG_FOLDER.rglob("*.yaml") if "help" not in path.parts)  # help is text
MAX_LINES = 30
# Shallow models on small images and batches, for the ordinary tests.
SHRUNK = ["debug=fast", "trainer.max_steps=2", "trainer.accelerator=cpu", "callbacks.checkpoints=null"]
SHRUNK += ["data.image_size=32", "data.batch_size=4", "data.limit=8"]
SHALLOW = {
    "cifar10_swin_tiny": "model.depths=[1,1]",
    "cifar10_transfer": "+model.depth=1",
    "cifar10_vit_tiny": "model.depth=1",
    "digits_vit": "model.depth=1",
    "imagenet_deit_small": "+model.depth=1",
    "imagenet_swin_tiny": "+model.depths=[1,1]",
    "imagenet_t2t_vit_14": "+model.depth=1",
    "my_images": "+model.depth=1",
}
# Values that the page of the recipes leaves out.
VALUES: dict[str, dict[str, Any]] = {
    "imagenet_t2t_vit_14": {
        "data.num_repeats": 1,
        "surgery.reset_steps": False,
        "task.random_erasing": {"probability": 0.25, "mode": "pixel", "max_count": 1},
    },
    "imagenet_deit_small": {"data.val_split": "validation", "surgery.reset_steps": False, "task.random_erasing": None},
    "imagenet_swin_tiny": {"data.val_split": "validation", "surgery.reset_steps": False, "task.random_erasing": None},
    "cifar10_swin_tiny": {"data.path": "uoft-cs/cifar10", "trainer.max_epochs": 5, "norm.filtration": True},
    "tatoeba_small": {"trainer.max_epochs": 5, "norm.filtration": False, "norm.pad_gradient": "excluded"},
    "cifar10_transfer": {"data.path": "uoft-cs/cifar10", "data.num_classes": 10},
    "cifar100_transfer": {"data.path": "uoft-cs/cifar100", "data.num_classes": 100},
    "iwslt14_de_en": {"data.batch_size": None, "trainer.max_epochs": -1},
    "wmt14_en_de": {"optimizer.filter_bias_and_bn": False, "trainer.accumulate_grad_batches": 1},
    "wmt14_en_de_big": {"optimizer.filter_bias_and_bn": False, "trainer.accumulate_grad_batches": 1},
}


def compose_config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train", list(overrides))


def run(config: DictConfig, folder: Path) -> set[str]:
    """Trains and tests as the config says; returns the names of the test scores."""
    check_config(config)
    OmegaConf.resolve(config)
    trainer = build_trainer(config, folder, [])
    data, module = build(config)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == config.trainer.max_steps
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    (scores,) = trainer.test(module, datamodule=data, verbose=False)
    return set(scores)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_composes_and_resolves(name: str) -> None:
    config = compose_config(f"experiment={name}", "norm=un")
    if OmegaConf.is_missing(config.data, "path"):
        with pytest.raises(UserError, match=r"^data\.path is missing: .* give data\.path=<value>$"):
            check_config(config)
        config.data.path = "folder"
    check_config(config)
    OmegaConf.resolve(config)
    for key, value in VALUES.get(name, {}).items():
        assert OmegaConf.select(config, key, throw_on_missing=True) == value, key


@pytest.mark.parametrize("name", ["cifar10_transfer", "cifar100_transfer"])
def test_transfer_trains_on_all_images_in_391_batches(name: str) -> None:
    data = compose_config(f"experiment={name}").data
    sampler = EpochSampler(50000, data.batch_size, training=True, drop_last=data.drop_last)
    assert [len(batch) for batch in sampler.list_batches()] == [128] * 390 + [80]


@pytest.mark.parametrize("name", ["digits", "cifar10", "image_folder", "imagenet", "multi30k"])
def test_seeds_share_their_held_out_examples(name: str) -> None:
    chosen = [f"data={name}", "data.path=folder", "seed=5"]
    assert compose_config(*chosen).data.split_seed == 0
    assert compose_config(*chosen, "data.split_seed=${seed}").data.split_seed == 5


def test_without_an_experiment_the_digits_are_trained() -> None:
    config = compose_config("norm=layernorm")
    assert config == compose_config("experiment=digits_vit", "norm=layernorm")
    assert (config.data.path, config.model.embed_dim) == ("sklearn-digits", 64)


def test_nothing_of_the_digits_leaks_into_other_experiments() -> None:
    config = compose_config("experiment=cifar10_vit_tiny")
    assert (config.task.label_smoothing, config.optimizer.lr, config.model.get("drop_path_rate")) == (0.0, 1e-3, None)


@pytest.mark.parametrize("name", SHALLOW)
def test_runs_shrunk(name: str, tmp_path: Path) -> None:
    config = compose_config(f"experiment={name}", *SHRUNK, SHALLOW[name])
    assert config.data.path is None
    assert {"test/acc1", "test/acc5", "test/loss"} <= run(config, tmp_path)


@pytest.mark.slow  # full-size models and images, minutes on a CPU; the batch alone is smaller
@pytest.mark.parametrize("name", VISION)
def test_runs_one_step_at_full_size(name: str, tmp_path: Path) -> None:
    small = ["data.path=null", "data.batch_size=8", "data.num_workers=0", "trainer.limit_val_batches=1"]
    limits = ["trainer.limit_test_batches=1", "trainer.max_steps=1", "trainer.accelerator=cpu"]
    config = compose_config(f"experiment={name}", *small, *limits)
    assert {"test/acc1", "test/acc5", "test/loss"} <= run(config, tmp_path)


def test_config_files_are_short_and_open_with_a_comment() -> None:
    for path in CONFIG_FILES:
        lines = path.read_text().splitlines()
        comments = [line for line in lines[:2] if line.startswith("#") and "@package" not in line]
        assert comments, f"{path} opens with what it is and where its values come from"
        assert len(lines) < MAX_LINES, path
