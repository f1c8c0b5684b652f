from __future__ import annotations

from functools import partial

import pytest
import torch
from timm import layers
from torch import nn
from torchvision.models import convnext

from tests import foreign_norms as foreign
from tests.standins import RowScale
from un.norms import BatchNorm, UnifiedNorm
from un.surgery import replace_norms, share_pad_mask
from un.surgery.layout import ChannelFirst
from un.surgery.recognition import recognize_norm

LAST_AXIS = [nn.LayerNorm, nn.RMSNorm, layers.LayerNorm, layers.LayerNormFp32, layers.RmsNorm, layers.RmsNormFp32]
LAST_AXIS += [layers.SimpleNorm, partial(layers.SimpleNorm, affine=False), layers.LayerNormAct]
AXIS_ONE = [layers.LayerNorm2d, layers.LayerNorm2dFp32, layers.norm.LayerNormExp2d, layers.LayerNormAct2d]
AXIS_ONE += [convnext.LayerNorm2d, layers.RmsNorm2d, layers.RmsNorm2dFp32, partial(layers.RmsNorm2d, affine=False)]
AXIS_ONE += [layers.SimpleNorm2d, partial(layers.SimpleNorm2d, affine=False)]


@pytest.mark.parametrize(
    ("norm_type", "axis"), [*((kind, -1) for kind in LAST_AXIS), *((kind, 1) for kind in AXIS_ONE)]
)
def test_layout_is_found_by_asking_the_norm(norm_type, axis):
    assert recognize_norm(norm_type(3).to("meta")).axis == axis
    model = nn.Sequential(norm_type(3))
    replace_norms(model, RowScale)
    assert model[0](torch.randn(2, 5, 6, 3).movedim(-1, axis)).isfinite().all()


@pytest.mark.parametrize("norm_type", [foreign.SequenceNorm, foreign.SwappedNorm])
def test_sequences_with_channels_first_keep_their_padding_out_of_the_statistics(norm_type):
    model, x = nn.Sequential(norm_type(8)), torch.randn(3, 8, 5)
    replace_norms(model, partial(BatchNorm, momentum=1.0))
    pad_mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [True] * 5])
    with share_pad_mask(model, pad_mask):
        model(x)
    rows = x.movedim(1, -1)[~pad_mask]
    torch.testing.assert_close(model[0].norm.running_mean, rows.mean(0))


def test_channel_first_normalises_axis_one_and_passes_attributes_through():
    norm = RowScale(4)
    nn.init.normal_(norm.weight)
    wrapped, x = ChannelFirst(norm), torch.randn(2, 4, 5, 3)
    torch.testing.assert_close(wrapped(x), norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    assert wrapped(x, torch.zeros(2, 5, 3, dtype=torch.bool)).shape == x.shape
    assert wrapped.weight is norm.weight
    assert wrapped.bias is norm.bias
    assert wrapped.num_features == 4
    assert wrapped.affine() is None
    scale, shift = ChannelFirst(UnifiedNorm(4)).affine()
    assert scale.shape == shift.shape == (4,)


def test_activation_inside_a_norm_stays():
    model = nn.Sequential(layers.LayerNormAct2d(4, act_layer=nn.ReLU), layers.LayerNormAct2d(4, apply_act=False))
    report = replace_norms(model, RowScale)
    assert [row.new for row in report.rows] == [
        "ChannelFirst(RowScale(4, eps=0.001)) + ReLU",
        "ChannelFirst(RowScale(4, eps=0.001))",
    ]
    assert model[0](torch.randn(2, 4, 3, 3)).min() == 0
