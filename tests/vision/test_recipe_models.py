"""The ImageNet models of the recipes: initial values, decay, stochastic depth and size, by the rules of their codes."""

import functools

import pytest
import torch
from hydra.utils import instantiate
from timm.layers import DropPath
from torch import nn

from tests.configs.test_experiments import compose_config

RECIPES = ["imagenet_t2t_vit_14", "imagenet_deit_small", "imagenet_swin_tiny"]
MILLIONS = {"imagenet_t2t_vit_14": 21.5, "imagenet_deit_small": 22.1, "imagenet_swin_tiny": 28.3}
TOKENS = ("cls_token", "pos_embed", "relative_position_bias_table")  # truncated normal 0.02, where they are trained
# Not decayed beside 1-D parameters and biases.
SPARED = {
    "imagenet_t2t_vit_14": {"cls_token"},
    "imagenet_deit_small": {"cls_token", "pos_embed"},
    "imagenet_swin_tiny": {"relative_position_bias_table"},
}


@functools.cache
def build(recipe):
    torch.manual_seed(0)
    return instantiate(compose_config(f"experiment={recipe}").model, num_classes=1000)


@pytest.mark.parametrize("recipe", RECIPES)
def test_initial_values(recipe):
    model = build(recipe)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert module.bias is None or not module.bias.any(), name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert not module.bias.any(), name
    for name, parameter in model.named_parameters():
        if name.endswith(TOKENS) and parameter.requires_grad:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.2), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_weight_decay(recipe):
    config, model = compose_config(f"experiment={recipe}"), build(recipe)
    groups = instantiate(config.optimizer)(model).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in decay
            continue
        spared = parameter.ndim == 1 or name.endswith((".bias", *SPARED[recipe]))
        assert decay[id(parameter)] == (0.0 if spared else 0.05), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_stochastic_depth_rises_evenly(recipe):
    """Each block drops both of its branches at the rate of its depth; the first one drops none."""
    model, last = build(recipe), compose_config(f"experiment={recipe}").model.drop_path_rate
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    depth = len(rates) // 2 + 1
    expected = [last * number / (depth - 1) for number in range(1, depth) for _ in range(2)]
    assert depth == {"imagenet_t2t_vit_14": 14}.get(recipe, 12)
    assert rates == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_size(recipe):
    assert sum(parameter.numel() for parameter in build(recipe).parameters()) / 1e6 == pytest.approx(
        MILLIONS[recipe], abs=0.06
    )
