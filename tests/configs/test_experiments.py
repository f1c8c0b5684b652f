"""Every experiment composes, says what its recipe says, builds and runs. The numbers are the published recipes'."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from un.command.checks import check_config
from un.training.assembly import build, build_trainer
from un.vision.batches import EpochSampler

CONFIGS = Path(__file__).parents[2] / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
VISION = [name for name in EXPERIMENTS if name.startswith(("digits", "cifar", "imagenet"))]
CONFIG_FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if "help" not in path.parts)  # help is text
MAX_LINES = 30
# Full models on smaller images and batches, for the ordinary tests.
SHRUNK = [
    "data.image_size=32",
    "data.batch_size=4",
    "data.limit=8",
    "trainer.max_steps=2",
    "callbacks.checkpoints=null",
]

MIXING = {
    "task.mixup.mixup_alpha": 0.8,
    "task.mixup.cutmix_alpha": 1.0,
    "task.mixup.prob": 1.0,
    "task.mixup.switch_prob": 0.5,
    "task.mixup.mode": "batch",
    "task.label_smoothing": 0.1,
}
IMAGENET = MIXING | {
    "optimizer.opt": "adamw",
    "optimizer.betas": [0.9, 0.999],
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.05,
    "scheduler.warmup_lr": 1e-6,
    "scheduler.min_lr": 1e-5,
    "data.transform.auto_augment": "rand-m9-mstd0.5-inc1",
    "data.transform.re_prob": 0.25,
    "data.transform.re_mode": "pixel",
    "data.transform.re_count": 1,
    "data.val_split": "validation",
    "data.test_split": "validation",
    "norm.window": 4,
    "norm.warmup_steps": 4000,
    "norm.filtration": True,
    "surgery.reset_steps": False,
}
TRANSFER = {
    "model.name": "t2t_vit_14",
    "model.drop_path_rate": 0.1,
    "data.image_size": 224,
    "data.batch_size": 128,
    "data.drop_last": False,
    "data.val_split": "test",
    "data.transform.crop_padding": 28,
    "data.transform.flip": 0.5,
    "data.transform.mean": [0.4914, 0.4822, 0.4465],
    "data.transform.std": [0.2023, 0.1994, 0.2010],
    "optimizer.opt": "momentum",
    "optimizer.lr": 0.05,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 5e-4,
    "optimizer.param_group_fn.head_lr": 0.05,
    "optimizer.param_group_fn.body_lr_factor": 0.01,
    "optimizer.param_group_fn.freeze_ungrouped": False,
    "scheduler.interval": "epoch",
    "scheduler.warmup_epochs": 0,
    "scheduler.min_lr": 2e-4,
    "trainer.max_epochs": 60,
    "trainer.precision": "32-true",
    "trainer.gradient_clip_val": None,
    "task.mixup": None,
    "task.label_smoothing": 0.0,
    "norm.window": 4,
    "norm.warmup_steps": 4000,
    "norm.filtration": True,
    "surgery.reset_steps": True,
}
RECIPES = {
    "cifar10_vit_tiny": {
        "model.patch_size": 4,
        "model.embed_dim": 96,
        "model.depth": 6,
        "model.num_heads": 3,
        "data.val_size": 5000,
        "data.batch_size": 128,
        "data.transform.crop_padding": 4,
        "data.transform.flip": 0.5,
        "optimizer.opt": "adamw",
        "optimizer.lr": 1e-3,
        "optimizer.weight_decay": 0.05,
        "scheduler.interval": "step",
        "scheduler.warmup_steps": 300,
        "trainer.max_epochs": 5,
        "trainer.gradient_clip_val": 1.0,
        "norm.warmup_steps": 300,
        "norm.filtration": True,
    },
    "imagenet_t2t_vit_14": IMAGENET
    | {
        "seed": 42,
        "model.name": "t2t_vit_14",
        "model.drop_path_rate": 0.1,
        "data.batch_size": 64,
        "data.num_repeats": 1,
        "data.transform.crop_pct": 0.9,
        "data.transform.train_interpolation": "random",
        "data.transform.re_after_mixing": True,
        "task.random_erasing": {"probability": 0.25, "mode": "pixel", "max_count": 1},
        "optimizer.lr": 5e-4,
        "scheduler.interval": "epoch",
        "scheduler.warmup_epochs": 10,
        "scheduler.cooldown_epochs": 10,
        "scheduler.warmup_prefix": False,
        "scheduler.lag": 0,
        "trainer.max_epochs": 310,
        "trainer.gradient_clip_val": None,
        "trainer.precision": "32-true",
        "task.ema_decay": 0.99996,
        "task.evaluate_ema": True,
    },
    "imagenet_deit_small": IMAGENET
    | {
        "seed": 0,
        "model.name": "deit_small_patch16_224",
        "model.drop_path_rate": 0.1,
        "data.batch_size": 128,
        "data.num_repeats": 3,
        "data.transform.crop_pct": 0.875,
        "data.transform.train_interpolation": "bicubic",
        "optimizer.lr": 1e-3,
        "scheduler.interval": "epoch",
        "scheduler.warmup_epochs": 5,
        "scheduler.cooldown_epochs": 0,
        "scheduler.lag": 1,
        "data.transform.re_after_mixing": False,
        "task.random_erasing": None,
        "model.class_token_std": 0.02,
        "trainer.precision": "16-mixed",
        "trainer.max_epochs": 300,
        "trainer.gradient_clip_val": None,
        "task.ema_decay": 0.99996,
        "task.evaluate_ema": False,
    },
    "imagenet_swin_tiny": IMAGENET
    | {
        "seed": 0,
        "model.name": "swin_tiny_patch4_window7_224",
        "model.drop_path_rate": 0.2,
        "data.batch_size": 128,
        "data.num_repeats": 1,
        "data.transform.crop_pct": 0.875,
        "data.transform.train_interpolation": "bicubic",
        "optimizer.lr": 1e-3,
        "scheduler.interval": "step",
        "scheduler.warmup_epochs": 20,
        "scheduler.warmup_prefix": True,
        "scheduler.lag": 1,
        "data.transform.re_after_mixing": False,
        "task.random_erasing": None,
        "trainer.precision": "16-mixed",
        "trainer.max_epochs": 300,
        "trainer.gradient_clip_val": 5.0,
        "task.ema_decay": None,
    },
    "cifar10_transfer": TRANSFER | {"data.path": "uoft-cs/cifar10", "data.num_classes": 10},
    "cifar100_transfer": TRANSFER | {"data.path": "uoft-cs/cifar100", "data.num_classes": 100},
}


def compose_config(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", list(overrides))


def run(config, folder):
    """Trains and tests as the config says; returns the test scores."""
    check_config(config)
    OmegaConf.resolve(config)
    trainer = build_trainer(config, folder, [])
    data, module = build(config)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == config.trainer.max_steps
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    (scores,) = trainer.test(module, datamodule=data, verbose=False)
    return scores


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_composes_and_resolves(name):
    check_config(compose_config(f"experiment={name}"))
    OmegaConf.resolve(compose_config(f"experiment={name}"))


@pytest.mark.parametrize("name", RECIPES)
def test_says_what_the_recipe_says(name):
    config = compose_config(f"experiment={name}", "norm=un")
    for key, value in RECIPES[name].items():
        assert OmegaConf.select(config, key, throw_on_missing=True) == value, key


@pytest.mark.parametrize("name", ["cifar10_transfer", "cifar100_transfer"])
def test_transfer_trains_on_all_images_in_391_batches(name):
    data = compose_config(f"experiment={name}").data
    sampler = EpochSampler(50000, data.batch_size, training=True, drop_last=data.drop_last)
    assert [len(batch) for batch in sampler.list_batches()] == [128] * 390 + [80]


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "image_folder", "imagenet", "multi30k"])
def test_seeds_share_their_held_out_examples(name):
    chosen = [f"data={name}", "data.path=folder"]
    assert compose_config(*chosen, "seed=5").data.split_seed == compose_config(*chosen, "seed=0").data.split_seed == 0
    assert compose_config(*chosen, "seed=5", "data.split_seed=${seed}").data.split_seed == 5


@pytest.mark.parametrize("norm", ["un", "layernorm"])
def test_without_an_experiment_the_digits_are_trained(norm):
    config = compose_config(f"norm={norm}")
    assert config == compose_config("experiment=digits_vit", f"norm={norm}")
    assert (config.data.path, config.model.embed_dim) == ("sklearn-digits", 64)


def test_nothing_of_the_digits_leaks_into_other_experiments():
    config = compose_config("experiment=cifar10_vit_tiny")
    assert (config.task.label_smoothing, config.optimizer.lr, config.model.get("drop_path_rate")) == (0.0, 1e-3, None)


@pytest.mark.parametrize("name", VISION)
def test_runs_shrunk(name, tmp_path):
    config = compose_config(f"experiment={name}", "debug=fast", "trainer.accelerator=cpu", *SHRUNK)
    assert config.data.path is None
    assert {"test/acc1", "test/acc5", "test/loss"} <= set(run(config, tmp_path))


@pytest.mark.slow  # full-size models and images, minutes on a CPU; the batch alone is smaller
@pytest.mark.parametrize("name", VISION)
def test_runs_one_step_at_full_size(name, tmp_path):
    small = ["data.path=null", "data.batch_size=8", "data.num_workers=0", "trainer.limit_val_batches=1"]
    limits = ["trainer.limit_test_batches=1", "trainer.max_steps=1", "trainer.accelerator=cpu"]
    config = compose_config(f"experiment={name}", *small, *limits)
    assert {"test/acc1", "test/acc5", "test/loss"} <= set(run(config, tmp_path))


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config_is_short_and_opens_with_a_comment(path):
    lines = path.read_text().splitlines()
    comments = [line for line in lines[:2] if line.startswith("#") and "@package" not in line]
    assert comments, "a config opens with what it is and where its values come from"
    assert len(lines) < MAX_LINES
