"""Every norm config builds its norm, and the values written in it are the ones the code documents as defaults."""

import inspect
from dataclasses import asdict
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from un import norms

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "norm").glob("*.yaml"))
TASK_DEPENDENT = {"warmup_steps", "filtration", "steps"}  # come from norm_defaults


def load(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def read_options(name):
    options = OmegaConf.to_container(load(f"norm={name}").norm, resolve=True)
    return {key: value for key, value in options.items() if not key.startswith("_")}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "layernorm"])
def test_builds_with_every_option_known(name):
    norm = instantiate(load(f"norm={name}").norm, _convert_="all")(24, device="meta")
    assert isinstance(norm, norms.Norm)
    assert norm.num_features == 24


def test_layernorm_leaves_the_model_alone():
    assert load("norm=layernorm").norm._target_ is None


def test_un_config_states_the_defaults_of_the_class():
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
        ("prepbn", norms.ProgressiveRepBatchNorm, {"steps"}),
        ("dyt", norms.DynamicTanh, set()),
    ],
)
def test_other_configs_state_the_defaults_of_their_class(name, kind, different):
    signature = inspect.signature(kind).parameters
    for key, value in read_options(name).items():
        if key not in different:
            assert value == signature[key].default, key


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("layernorm", "rmsnorm", "dyt")])
def test_every_norm_with_batch_statistics_can_sync(name):
    norm = instantiate(load(f"norm={name}", "norm.sync=true").norm, _convert_="all")(8)
    owner = getattr(norm, "rep_norm", norm)
    assert getattr(owner, "switches", owner).sync is True


def test_a_value_of_the_command_line_wins_over_the_experiment():
    config = load("experiment=cifar10_vit_tiny", "norm.filtration=false", "norm.warmup_steps=7")
    assert (config.norm.filtration, config.norm.warmup_steps) == (False, 7)
    assert load("experiment=cifar10_vit_tiny").norm.warmup_steps == 300


# The text of --help is prose in a YAML file.
FILES = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent.name != "help"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config_files_are_short_and_say_what_they_are(path):
    lines = path.read_text().splitlines()
    assert len(lines) < 30
    opening = [line for line in lines[:2] if line.startswith("#") and "@package" not in line]
    assert opening, "a config opens with what it is and where its values come from"
