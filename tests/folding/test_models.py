"""Families of models with every norm replaced: outputs before and after, and where each norm went."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from tests.folding.helpers import (
    check_fold,
    list_norm_keys,
    outcomes,
    randomize,
    relative_difference,
    rules,
)
from tests.standins import build_small
from un.folding import fold_norms
from un.folding.padding import FillPadding
from un.norms import BatchNorm, RepBatchNorm, RMSNorm, UnifiedNorm
from un.surgery import replace_norms
from un.vision import t2t_vit  # noqa: F401  registers its models with timm

T2T = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2, "token_dim": 16, "num_classes": 3}
FULLY = {
    "deit_tiny_distilled_patch16_224": {"R1"},
    "deit3_small_patch16_224": {"R1"},
    "beit_base_patch16_224": {"R1"},
    "cait_xxs24_224": {"R1"},
    "swin_tiny_patch4_window7_224": {"R1", "R3"},
    "swinv2_tiny_window8_256": {"R1", "R3"},
    "convnext_atto": {"R1", "R2", "R3"},
}


@pytest.mark.parametrize("name", FULLY)
def test_every_norm_of_a_family_vanishes(name):
    model, images = build_small(name)
    replace_norms(model, RepBatchNorm)
    folded, report = check_fold(randomize(model), (images,), on_unfoldable="raise")
    assert set(rules(report).values()) == FULLY[name]
    assert list_norm_keys(folded, report) == []


@pytest.mark.parametrize(("name", "norm"), [("t2t_vit_7", UnifiedNorm), ("t2t_vit_t_14", RepBatchNorm)])
def test_every_norm_of_t2t_vit_vanishes(name, norm):
    torch.manual_seed(0)
    model = timm.create_model(name, **T2T)
    replace_norms(model, norm)
    folded, report = check_fold(randomize(model), (torch.randn(2, 3, 32, 32),), on_unfoldable="raise")
    assert set(rules(report).values()) == {"R1"}
    assert list_norm_keys(folded, report) == []
    assert folded.blocks[0].attn.qkv.bias is not None


def test_a_folded_state_dict_loads_into_the_plain_class():
    model, images = build_small("vit_tiny_patch16_224")
    replace_norms(model, UnifiedNorm)
    folded, _ = fold_norms(randomize(model), (images,), on_unfoldable="raise")
    plain, _ = build_small("vit_tiny_patch16_224")
    for name in ("blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm"):
        plain.set_submodule(name, nn.Identity())
    plain.load_state_dict(folded.state_dict())
    torch.testing.assert_close(plain.eval()(images), folded(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("pool", "positive", "outcome"),
    [("avg", False, "folded"), ("avgmax", False, "multiply-add"), ("max", True, "folded")],
)
def test_pooling_folds_only_where_the_map_commutes(pool, positive, outcome):
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=16, depth=1, num_heads=2, num_classes=3, global_pool=pool, fc_norm=False
    )
    replace_norms(model, BatchNorm)
    randomize(model)
    if positive:
        model.norm.weight.data.abs_()
    _, report = check_fold(model, (torch.randn(2, 3, 32, 32),))
    assert outcomes(report) == {"blocks.0.norm1": "folded", "blocks.0.norm2": "folded", "norm": outcome}


def test_norms_over_heads_fold_into_the_projection_before_them():
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=16, depth=2, num_heads=2, num_classes=3, qk_norm=True
    )
    replace_norms(model, BatchNorm)
    _, report = check_fold(randomize(model), (torch.randn(2, 3, 32, 32),), on_unfoldable="raise")
    assert rules(report)["blocks.0.attn.q_norm"] == rules(report)["blocks.0.attn.k_norm"] == "R3"


def test_token_mixing_keeps_its_norms_and_says_so():
    torch.manual_seed(0)
    model = timm.models.MlpMixer(img_size=64, patch_size=16, num_blocks=2, embed_dim=40, num_classes=3)
    replace_norms(model, UnifiedNorm)
    _, report = check_fold(randomize(model), (torch.randn(2, 3, 64, 64),))
    by_site = {row.site: row for row in report.rows}
    assert by_site["blocks.0.norm1"].outcome == by_site["blocks.1.norm1"].outcome == "multiply-add"
    assert "other values alike" in by_site["blocks.0.norm1"].stays
    assert {by_site[name].outcome for name in ("blocks.0.norm2", "blocks.1.norm2", "norm")} == {"folded"}


def make_small_swin(library: str) -> nn.Module:
    sizes = {"depths": [2, 1], "embed_dim": 24, "num_heads": [2, 2], "num_classes": 3}
    if library == "timm":
        return timm.models.SwinTransformer(img_size=56, window_size=7, strict_img_size=False, **sizes)
    return torchvision.models.SwinTransformer(patch_size=[4, 4], window_size=[7, 7], **sizes)


# 10 x 10 and 14 x 14 patches in windows of 7
@pytest.mark.parametrize(("library", "size"), [("timm", 40), ("torchvision", 56)])
def test_swin_folds_for_every_size(library, size):
    torch.manual_seed(0)
    model = make_small_swin(library)
    replace_norms(model, BatchNorm)
    model = randomize(model).double()
    folded, report = fold_norms(model, torch.randn(1, 3, size, size).double(), on_unfoldable="raise")
    assert len(report.folded) == 9
    for other in (56, 40, 24):
        images = torch.randn(2, 3, other, other + 8).double()
        with torch.no_grad():
            assert relative_difference(model(images), folded(images)) < 1e-12


def test_padding_other_than_on_the_example_is_refused():
    torch.manual_seed(0)
    model = make_small_swin("timm")
    replace_norms(model, BatchNorm)
    folded, _ = fold_norms(randomize(model), torch.randn(1, 3, 56, 56))
    block = folded.layers[0].blocks[0]
    with pytest.raises(ValueError, match=r"pads an input of shape .*, unlike on the example"):
        FillPadding(block, []).__torch_function__(F.pad, (), (torch.zeros(1, 4, 4, 24), (1, 0)))
    block._attn = lambda x: F.pad(F.pad(x, (0, 0, 0, 0)), (0, 0, 0, 0))
    with pytest.raises(ValueError, match="pads 2 times, unlike on the example"):
        block(torch.zeros(1, 14, 14, 24))


@pytest.mark.parametrize(
    ("name", "factory", "kept"),
    [
        ("vit_tiny_patch16_224", None, []),
        ("swin_tiny_patch4_window7_224", RMSNorm, ["patch_embed.norm"]),
    ],
)
def test_norms_that_are_not_offline_lose_their_affine(name, factory, kept):
    model, images = build_small(name)
    if factory is not None:
        replace_norms(model, factory, carry_affine=False)
    folded, report = check_fold(randomize(model), (images,))
    assert [row.site for row in report.rows if row.outcome != "affine folded"] == kept
    assert list_norm_keys(folded, report) == [key for key in folded.state_dict() if kept and key.startswith(kept[0])]
    assert "stays" in report.rows[-1].stays


def test_layer_scales_go_into_the_layer_before_them():
    model, images = build_small("deit3_small_patch16_224")
    folded, report = fold_norms(randomize(model), images)
    scales = [f"blocks.{block}.ls{number}" for block in range(len(model.blocks)) for number in (1, 2)]
    assert f"R10: {', '.join(scales)} merged into the layers before them" in report.notes
    assert all(type(folded.get_submodule(name)) is torch.nn.Identity for name in scales)
    assert not any(row.site in scales for row in report.rows)
    expected = model.blocks[0].ls1.gamma[:, None] * model.blocks[0].attn.proj.weight
    torch.testing.assert_close(folded.blocks[0].attn.proj.weight, expected)
