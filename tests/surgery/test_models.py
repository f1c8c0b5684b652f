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
from un.vision import t2t_vit  # noqa: F401  registers its models with timm

CONFIGS = Path(__file__).parents[2] / "configs" / "surgery"


@pytest.mark.parametrize("factory", [RowScale, UnifiedNorm])
@pytest.mark.parametrize("name", MODELS)
def test_every_norm_of_a_model_is_replaced_and_used(name, factory):
    model, images = build_small(name)
    expected = list_old_norms(model)
    report = replace_norms(model, factory)
    assert sorted(row.site for row in report.rows) == sorted(expected)
    assert list_old_norms(model) == []

    model(images).square().sum().backward()
    sites = [model.get_submodule(row.site) for row in report.rows]
    assert all(parameter.grad is not None for site in sites for parameter in site.parameters())

    called = set()
    for row in report.rows:
        model.get_submodule(row.site).register_forward_hook(lambda *_, site=row.site: called.add(site))
    with torch.no_grad():
        logits = model.eval()(images)
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()
    assert called == {row.site for row in report.rows}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_tiny_patch16_224", 25),
        ("deit_tiny_distilled_patch16_224", 25),
        ("swin_tiny_patch4_window7_224", 29),
        ("convnext_atto", 17),
        ("t2t_vit_14", 33),
    ],
)
def test_full_size_models_keep_the_meta_device(name, count):
    with torch.device("meta"):
        model = timm.create_model(name)
    report = replace_norms(model, UnifiedNorm)
    assert len(report.rows) == count
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_replacing_layer_norm_by_layer_norm_changes_nothing(name):
    model, images = build_small(name)
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


def read_preset(name: str) -> dict:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return dict(compose(name))


@pytest.mark.parametrize("preset", ["all", "blocks_only", "keep_final"])
def test_presets_have_the_same_keys(preset):
    assert set(read_preset(preset)) == {"include", "exclude", "carry_affine", "reset_steps", "pad_mask"}


@pytest.mark.parametrize(
    ("name", "arguments", "blocks", "final"),
    [
        ("vit_tiny_patch16_224", {}, 24, ["norm"]),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, 24, ["fc_norm"]),
        ("swin_tiny_patch4_window7_224", {}, 24, ["norm"]),
        ("convnext_atto", {}, 12, ["head.norm"]),
        ("cait_xxs24_224", {}, 52, ["norm"]),
        ("t2t_vit_14", {}, 28, ["norm"]),
    ],
)
def test_presets_find_their_sites(name, arguments, blocks, final):
    def operate(preset: str) -> tuple[list[str], list[str]]:
        config = read_preset(preset)
        with torch.device("meta"):
            model = timm.create_model(name, **arguments)
        report = replace_norms(model, RowScale, config["include"], config["exclude"], config["carry_affine"])
        return [row.site for row in report.rows], [row.site for row in report.kept]

    everything, nothing = operate("all")
    assert nothing == []
    replaced, kept = operate("blocks_only")
    assert len(replaced) == blocks
    assert set(final) <= set(kept)
    replaced, kept = operate("keep_final")
    assert kept == final
    assert len(replaced) == len(everything) - 1
