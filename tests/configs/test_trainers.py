"""What `trainer=ddp` becomes on GPUs and on the CPU."""

from datetime import timedelta

import pytest
from hydra import compose, initialize_config_dir

from un.command.errors import CONFIG_FOLDER
from un.training.assembly import build_part
from un.training.start import choose_mixed_precision


@pytest.mark.parametrize(("trainer", "strategy"), [("ddp", "DDPStrategy"), ("gpu", "auto")])
def test_precision_follows_the_accelerator(trainer: str, strategy: str) -> None:
    for accelerator, precision in {"gpu": "16-mixed", "cpu": "32-true"}.items():
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            config = compose("train", overrides=[f"trainer={trainer}", f"trainer.accelerator={accelerator}"]).trainer
        assert (config.precision, choose_mixed_precision(accelerator)) == (precision, precision)
        assert strategy in str(config.strategy)


@pytest.mark.parametrize("trainer", ["default", "gpu"])
@pytest.mark.parametrize(
    ("experiment", "precision"),
    [
        ("iwslt14_de_en", "32-true"),
        ("cifar10_transfer", "32-true"),
        ("imagenet_t2t_vit_14", "32-true"),
        ("wmt14_en_de_big", "16-mixed"),  # as in fairseq; DeiT and Swin, too
        ("imagenet_deit_small", "16-mixed"),
    ],
)
def test_recipes_keep_their_precision_unless_asked(trainer: str, experiment: str, precision: str) -> None:
    overrides = [f"experiment={experiment}", f"trainer={trainer}"]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        assert compose("train", overrides).trainer.precision == precision
        assert compose("train", [*overrides, "trainer.precision=bf16-mixed"]).trainer.precision == "bf16-mixed"


def test_patience_is_an_option() -> None:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("train", overrides=["trainer=ddp", "trainer.strategy.timeout.minutes=1"]).trainer
    assert build_part(config, "strategy")._timeout == timedelta(minutes=1)
