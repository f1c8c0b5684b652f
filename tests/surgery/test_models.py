from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from tests.standins import MODELS, RowScale, build_small, list_old_norms
from un.norms import UnifiedNorm
from un.surgery import replace_norms
from un.surgery.sites import assign_factories, find_sites
from un.vision import t2t_vit  # noqa: F401  registers its models with timm

CONFIGS = Path(__file__).parents[2] / "configs" / "surgery"


@pytest.mark.parametrize("name", MODELS)
def test_every_norm_of_a_model_is_replaced_and_used(name):
    model, images = build_small(name)
    expected = list_old_norms(model)
    report = replace_norms(model, RowScale)
    assert sorted(row.site for row in report.rows) == sorted(expected)
    assert list_old_norms(model) == []
    logits = model(images)
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    sites = [model.get_submodule(row.site) for row in report.rows]
    assert all(parameter.grad is not None for site in sites for parameter in site.parameters())


def test_full_size_models_keep_the_meta_device():
    with torch.device("meta"):
        model = timm.create_model("swin_tiny_patch4_window7_224")
    assert len(replace_norms(model, UnifiedNorm).rows) == 29
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_replacing_layer_norm_by_layer_norm_changes_nothing():
    model, images = build_small("convnext_atto")
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    eps = {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)}.pop()
    expected = model.eval()(images)
    replace_norms(model, partial(nn.LayerNorm, eps=eps))
    torch.testing.assert_close(model(images), expected)


def test_norms_of_an_earlier_surgery_are_sites():
    model, images = build_small("convnext_atto")
    first = replace_norms(model, UnifiedNorm)
    second = replace_norms(model, RowScale)
    assert [row.site for row in second.rows] == [row.site for row in first.rows]
    assert [row.old for row in second.rows] == [row.new for row in first.rows]
    assert not any(isinstance(module, UnifiedNorm) for module in model.modules())
    assert model(images).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "total", "blocks", "final"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, 25, 24, "fc_norm"),
        ("swin_tiny_patch4_window7_224", {}, 29, 24, "norm"),
        ("convnext_atto", {}, 17, 12, "head.norm"),
        ("t2t_vit_14", {}, 33, 28, "norm"),
    ],
)
def test_presets_find_their_sites(name, arguments, total, blocks, final):
    with torch.device("meta"):
        sites, _ = find_sites(timm.create_model(name, **arguments))

    def choose(preset: str) -> set[str]:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose(preset)
        assert set(config) == {"include", "exclude", "carry_affine", "reset_steps", "pad_mask", "final"}
        return set(assign_factories(sites, RowScale, list(config.include), list(config.exclude)))

    everything = choose("all")
    assert len(everything) == total
    replaced = choose("blocks_only")
    assert len(replaced) == blocks
    assert final not in replaced
    assert everything - choose("keep_final") == {final}
