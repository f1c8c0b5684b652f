"""Every norm config builds its norm, and the values written in it are the ones the code documents as defaults."""

import inspect
from dataclasses import asdict
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.configs.test_experiments import compose_config
from tests.norms.helpers import STATELESS
from un import norms
from un.command.errors import CONFIG_FOLDER

NAMES = sorted(path.stem for path in (CONFIG_FOLDER / "norm").glob("*.yaml"))
TASK_DEPENDENT = {"warmup_steps", "filtration"}  # come from norm_defaults


def read_options(name: str) -> dict[str, Any]:
    options = OmegaConf.to_container(compose_config(f"norm={name}").norm, resolve=True)
    return {key: value for key, value in options.items() if not key.startswith("_")}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "layernorm"])
def test_builds_with_every_option_known(name: str) -> None:
    """Every norm with statistics of batches can sync them, too."""
    sync = ["norm.sync=true"] if "sync" in compose_config(f"norm={name}").norm else []
    norm = instantiate(compose_config(f"norm={name}", *sync).norm, _convert_="all")(24, device="meta")
    assert isinstance(norm, norms.Norm)
    assert norm.num_features == 24
    assert bool(sync) == (name not in STATELESS)
    if sync:
        owner = getattr(norm, "rep_norm", norm)
        assert getattr(owner, "switches", owner).sync is True


def test_layernorm_leaves_the_model_alone() -> None:
    assert compose_config("norm=layernorm").norm._target_ is None


def test_un_config_states_the_defaults_of_the_class() -> None:
    signature = inspect.signature(norms.UnifiedNorm).parameters
    defaults = {key: entry.default for key, entry in signature.items()} | asdict(norms.Switches())
    for key, value in read_options("un").items():
        expected = defaults[key]
        if key not in TASK_DEPENDENT:
            assert value == (list(expected) if isinstance(expected, tuple) else expected), key
    missing = set(asdict(norms.Switches())) - set(read_options("un"))
    assert not missing, "a switch that the command line cannot reach without +"


@pytest.mark.parametrize(
    ("name", "kind", "different"),
    [
        ("batchnorm", norms.BatchNorm, set()),
        ("powernorm", norms.PowerNorm, {"warmup_steps"}),
        ("mabn", norms.MovingAverageBatchNorm, {"window"}),  # 4, to compare with UN
        ("rmsnorm", norms.RMSNorm, set()),
        ("rep_batchnorm", norms.RepBatchNorm, set()),
        ("prepbn", norms.ProgressiveRepBatchNorm, set()),
        ("tapernorm", norms.TaperNorm, set()),
        ("dyt", norms.DynamicTanh, set()),
        ("derf", norms.DynamicErf, set()),
        ("groupnorm", norms.GroupNorm, set()),
        ("rbn", norms.RegularizedBatchNorm, set()),
        ("ffn_bn", norms.FeedForwardBatchNorm, set()),
        ("scalenorm", norms.ScaleNorm, set()),
        ("channel_map", norms.ChannelMap, set()),
        ("powernorm_ungrouped", norms.PowerNorm, {"warmup_steps", "group_scaling"}),
    ],
)
def test_other_configs_state_the_defaults_of_their_class(name: str, kind: type, different: set[str]) -> None:
    signature = inspect.signature(kind).parameters
    for key, value in read_options(name).items():
        if key not in different:
            assert value == signature[key].default, key


def test_a_value_of_the_command_line_wins_over_the_experiment() -> None:
    config = compose_config("experiment=cifar10_vit_tiny", "norm.filtration=false", "norm.momentum=0.5")
    assert (config.norm.filtration, config.norm.momentum, config.norm.warmup_steps) == (False, 0.5, 300)


def test_penalties_of_translation_are_those_of_the_official_sum_per_token() -> None:
    """The official code adds 0.1 and 0.01 times a difference to the loss summed over a batch of about 4096 tokens."""
    for experiment in ("phrasebook_tiny", "multi30k_small", "iwslt14_de_en", "wmt14_en_de", "wmt14_en_de_big"):
        norm = compose_config(f"experiment={experiment}", "norm=rbn").norm
        assert norm.penalty_mean == pytest.approx(0.1 / 4096, rel=0.02)
        assert norm.penalty_variance == pytest.approx(0.01 / 4096, rel=0.02)


def test_the_recommended_preset_depends_on_the_task() -> None:
    """Images are centred, text is not; `norm=un` does not change."""
    for path in (CONFIG_FOLDER / "experiment").glob("*.yaml"):
        config = compose_config(f"experiment={path.stem}", "norm=un_recommended")
        is_translation = config.task._target_.startswith("un.translation")
        assert config.norm.centering == ("none" if is_translation else "batch"), path.stem
    assert (config.norm.warmup_steps, config.norm.warmup_fraction, config.norm.warmup_gradient) == (
        None,
        0.2,
        "instant",
    )
    official = compose_config("norm=un").norm
    assert (official.centering, official.warmup_fraction, official.warmup_gradient) == ("none", None, "running")


def test_tapernorm_keeps_the_final_norm_unless_told_otherwise() -> None:
    final = compose_config("surgery=keep_final").surgery.exclude
    assert "encoder.layer_norm" in final
    assert compose_config("norm=tapernorm").surgery.exclude == final
    everything = compose_config("norm=tapernorm", "surgery=all").surgery
    assert (everything.exclude, everything.final) == ([], final)
