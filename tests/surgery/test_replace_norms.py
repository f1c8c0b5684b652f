from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from timm import layers
from torch import nn

from tests.standins import RowScale, build_small, list_old_norms
from un.norms import UnifiedNorm
from un.surgery import replace_norms, reset_norm_steps
from un.surgery.layout import ChannelFirst


def build_pair(**options: object) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8, **options), nn.LayerNorm(8, **options), nn.LayerNorm(8, **options))


# --- what a new norm takes over -------------------------------------------------------------------------------------


def test_norm_without_parameters_asks_for_affine_false_and_takes_the_type_of_its_neighbours():
    model = nn.Sequential(nn.Linear(8, 8, dtype=torch.float64), nn.LayerNorm(8, elementwise_affine=False))
    seen = {}
    report = replace_norms(model, lambda channels, **options: seen.update(options) or RowScale(channels, **options))
    assert seen == {"affine": False, "dtype": torch.float64, "device": torch.device("cpu")}
    assert list(model[1].parameters()) == []
    assert report.rows[0].old == "LayerNorm(8, eps=1e-05, affine=False)"
    assert report.rows[0].new == "RowScale(8, eps=0.001, affine=False)"


def test_type_training_mode_and_requires_grad_are_kept():
    model = build_pair(dtype=torch.bfloat16)
    model[1].eval()
    model[1].weight.requires_grad_(False)
    model[2].requires_grad_(False)
    replace_norms(model, partial(RowScale, eps=0.25))
    assert model[1].eps == 0.25
    assert model[1].weight.dtype == model[1].bias.dtype == torch.bfloat16
    assert [module.training for module in model] == [True, False, True]
    assert [model[1].weight.requires_grad, model[1].bias.requires_grad] == [False, True]
    assert [model[2].weight.requires_grad, model[2].bias.requires_grad] == [False, False]


def test_weight_and_bias_carry_over_only_when_asked():
    model = build_pair()
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    old, other = model[1], copy.deepcopy(model)
    replace_norms(model, RowScale)
    assert model[1].weight.equal(old.weight)
    assert model[1].bias.equal(old.bias)
    assert model[1].weight is not old.weight
    replace_norms(other, RowScale, carry_affine=False)
    assert other[1].weight.equal(torch.ones(8))
    assert other[1].bias.equal(torch.zeros(8))


def test_rms_norm_carries_its_weight_and_gains_a_zero_bias():
    model = nn.Sequential(nn.RMSNorm(8))
    nn.init.normal_(model[0].weight)
    weight = model[0].weight.detach().clone()
    model[0].weight.requires_grad_(False)
    replace_norms(model, RowScale)
    assert model[0].weight.equal(weight)
    assert model[0].bias.equal(torch.zeros(8))
    assert not model[0].bias.requires_grad


def test_a_bias_the_new_norm_cannot_hold_is_an_error_unless_dropped_on_purpose():
    model = build_pair()
    nn.init.ones_(model[2].bias)
    before = list(model)
    with pytest.raises(ValueError, match=r"^2: RMSNorm has no bias .* carry_affine=False$"):
        replace_norms(model, nn.RMSNorm)
    assert list(model) == before  # an error leaves the model as it was
    replace_norms(model, nn.RMSNorm, carry_affine=False)
    assert isinstance(model[2], nn.RMSNorm)


# --- choosing sites -------------------------------------------------------------------------------------------------


def test_include_and_exclude_choose_sites():
    model, _ = build_small("vit_tiny_patch16_224")
    report = replace_norms(model, RowScale, include=["blocks.*", "norm"], exclude="*.norm2")
    assert [row.site for row in report.rows] == ["blocks.0.norm1", "blocks.1.norm1", "norm"]
    assert [row.site for row in report.kept] == ["blocks.0.norm2", "blocks.1.norm2"]
    assert type(model.blocks[0].norm2) is layers.LayerNorm


def test_a_mapping_gives_sites_different_norms():
    model, _ = build_small("vit_tiny_patch16_224")
    report = replace_norms(model, {"*.norm1": RowScale, "norm": UnifiedNorm})
    assert [row.new.split("(")[0] for row in report.rows] == ["RowScale", "RowScale", "UnifiedNorm"]
    assert len(report.kept) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": ["blocks.*.nrom1"]}, r"^include 'blocks.\*.nrom1' matches no norm; the nearest are blocks\.\d"),
        ({"include": ["*", "block.0"]}, "^include 'block.0' matches no norm"),
        ({"exclude": ["head.*", "nrm"]}, r"^exclude 'head.\*', 'nrm' matches no norm"),
        ({"exclude": "*"}, "leave no norm to replace$"),
        ({"include": []}, "leave no norm to replace$"),
        ({"include": 3}, "^include must be a glob or a list of globs on module names, got 3$"),
        ({"norm_factory": {"*.norm1": RowScale, "blocks.0.*": RowScale}}, r"all claim blocks\.0\.norm1"),
        ({"norm_factory": {"*.norm3": RowScale}}, r"^norm glob '\*\.norm3' matches no norm; the nearest are"),
    ],
)
def test_bad_choices_are_one_line_and_change_nothing(arguments, message):
    model, _ = build_small("vit_tiny_patch16_224")
    before = list_old_norms(model)
    with pytest.raises(ValueError, match=message) as error:
        replace_norms(model, **{"norm_factory": RowScale, **arguments})
    assert "\n" not in str(error.value)
    assert list_old_norms(model) == before


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8)),
            "^Sequential has no norm to replace",
        ),
        (nn.LayerNorm(8), r"^the model itself is a norm, LayerNorm\(8, eps=1e-05\)"),
        (ChannelFirst(RowScale(8)), "^the model itself is a norm"),
        (nn.Sequential(nn.LayerNorm((4, 8))), r"^0 normalises over axes of shape \(4, 8\)"),
    ],
)
def test_models_that_cannot_be_operated_on(model, message):
    with pytest.raises(ValueError, match=message):
        replace_norms(model, RowScale)


# --- shared norms ---------------------------------------------------------------------------------------------------


def test_a_norm_under_two_names_becomes_one_new_norm():
    norm = nn.LayerNorm(8)
    model = nn.ModuleDict({"a": nn.Sequential(norm), "b": nn.ModuleList([nn.Linear(8, 8), norm])})
    report = replace_norms(model, RowScale)
    assert isinstance(model["a"][0], RowScale)
    assert model["a"][0] is model["b"][1]
    assert [row.site for row in report.rows] == ["a.0", "b.1"]
    assert "b.1 and a.0 are one shared norm" in str(report)


def test_a_norm_inside_a_shared_block_is_reported_under_both_names():
    block = nn.Sequential(nn.LayerNorm(8))
    model = nn.Sequential(block, block)
    assert [row.site for row in replace_norms(model, RowScale).rows] == ["0.0", "1.0"]
    assert isinstance(block[0], RowScale)


def test_a_shared_norm_is_replaced_under_all_names_or_none():
    norm = nn.LayerNorm(8)
    model = nn.ModuleDict({"a": norm, "b": norm, "c": nn.LayerNorm(8)})
    with pytest.raises(ValueError, match=r"^a and b are one shared norm"):
        replace_norms(model, RowScale, exclude="b")
    assert [row.site for row in replace_norms(model, RowScale, include="c").rows] == ["c"]


# --- the report -----------------------------------------------------------------------------------------------------


def test_report_names_a_norm_it_knows_nothing_about():
    model = build_pair()
    report = replace_norms(model, lambda channels, **options: nn.Identity())
    assert report.rows[0].new == "Identity(?, affine=False)"


def test_report_prints_an_aligned_table():
    model, _ = build_small("vit_tiny_patch16_224")
    report = replace_norms(model, RowScale, exclude="norm")
    lines = str(report).splitlines()
    assert lines[0].split() == ["site", "old", "new"]
    assert lines[1] == "blocks.0.norm1  LayerNorm(192, eps=1e-06)  RowScale(192, eps=0.001)"
    assert lines[-2] == "norm            LayerNorm(192, eps=1e-06)  kept"
    assert lines[-1] == "4 norms replaced, 1 kept"
    assert {line.index(word) for line, word in zip(lines[:2], ("old", "LayerNorm"), strict=True)} == {16}


# --- fused kernels that would bypass the new norms ------------------------------------------------------------------


@pytest.mark.parametrize(("norm_first", "padded"), [(True, False), (False, True)])
def test_new_norms_of_torch_transformers_run_in_inference(norm_first, padded):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    x, mask = torch.randn(2, 4, 8), torch.tensor([[False, False, False, True], [False] * 4])
    report = replace_norms(model, RowScale)
    assert len(report.rows) == 4
    assert any(note.startswith("layers.0: activation_relu_or_gelu set to 0") for note in report.notes)
    with torch.no_grad():
        y = model(x, src_key_padding_mask=mask if padded else None)
    assert [module.calls for module in model.modules() if isinstance(module, RowScale)] == [1, 1, 1, 1]
    with torch.enable_grad():  # torch never takes the fast path here
        torch.testing.assert_close(y, model(x, src_key_padding_mask=mask if padded else None))


def test_fast_paths_of_kept_norms_stay_on():
    model = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)])
    replace_norms(model, RowScale, include="1.*")
    assert [layer.activation_relu_or_gelu for layer in model] == [1, 0]


def test_fairseq_encoder_layers_lose_their_fast_path():
    layer = nn.ModuleDict({"self_attn_layer_norm": nn.LayerNorm(8)})
    layer.can_use_fastpath = True
    replace_norms(nn.Sequential(layer), RowScale)
    assert layer.can_use_fastpath is False


# --- step counters --------------------------------------------------------------------------------------------------


def test_reset_norm_steps_reaches_every_counter():
    model, images = build_small("convnext_atto")
    replace_norms(model, UnifiedNorm, exclude="head.norm")
    model(images)
    counters = [module for module in model.modules() if isinstance(module, UnifiedNorm)]
    assert all(norm.iters == 1 for norm in counters)
    assert reset_norm_steps(build_pair()) == 0
    assert reset_norm_steps(model) == len(counters)
    assert all(norm.iters == 0 for norm in counters)
