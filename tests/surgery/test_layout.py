from __future__ import annotations

from functools import partial

import pytest
import torch
from timm import layers
from torch import Tensor, nn
from torchvision.models import convnext

from tests import foreign_norms as foreign
from tests.standins import RowScale
from un.norms import BatchNorm, UnifiedNorm
from un.surgery import replace_norms, share_pad_mask
from un.surgery.layout import ChannelFirst
from un.surgery.recognition import recognize_norm


@pytest.mark.parametrize("channels", [2, 3, 8])
@pytest.mark.parametrize(
    ("norm_type", "expected"),
    [
        (nn.LayerNorm, False),
        (nn.RMSNorm, False),
        (layers.LayerNorm, False),
        (layers.LayerNormFp32, False),
        (layers.RmsNorm, False),
        (layers.RmsNormFp32, False),
        (layers.SimpleNorm, False),
        (partial(layers.SimpleNorm, affine=False), False),
        (layers.LayerNormAct, False),
        (layers.LayerNorm2d, True),
        (layers.LayerNorm2dFp32, True),
        (layers.norm.LayerNormExp2d, True),
        (layers.LayerNormAct2d, True),
        (convnext.LayerNorm2d, True),
        (layers.RmsNorm2d, True),
        (layers.RmsNorm2dFp32, True),
        (partial(layers.RmsNorm2d, affine=False), True),
        (layers.SimpleNorm2d, True),
        (partial(layers.SimpleNorm2d, affine=False), True),
    ],
)
def test_layout_is_found_by_asking_the_norm(norm_type, expected, channels):
    for norm in (norm_type(channels), norm_type(channels).to("meta")):
        assert recognize_norm(norm).axis == (1 if expected else -1)
    model = nn.Sequential(norm_type(channels))
    replace_norms(model, RowScale)
    assert model[0](torch.randn((2, channels, 5, 6) if expected else (2, 5, 6, channels))).isfinite().all()


def test_layout_needs_no_telling_name():
    class Oddly(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.transpose(1, -1)).transpose(1, -1)

    model = nn.Sequential(Oddly(8))
    replace_norms(model, RowScale)
    assert isinstance(model[0], ChannelFirst)


@pytest.mark.parametrize(
    ("norm_type", "shape", "axis"),
    [
        (foreign.SequenceNorm, (2, 8, 5), 1),
        (foreign.SequenceNorm, (2, 8, 8), 1),
        (foreign.SwappedNorm, (2, 8, 5), 1),
        (foreign.SwappedNorm, (2, 8, 8, 5), 2),
        (foreign.MapNorm, (2, 8, 8, 5), 1),
        (foreign.VolumeNorm, (2, 8, 8, 3, 5), 1),
    ],
)
def test_a_layer_norm_put_in_the_place_of_one_changes_nothing_in_any_layout(norm_type, shape, axis):
    model, x = nn.Sequential(norm_type(8)), torch.randn(shape)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    expected = model(x)
    replace_norms(model, partial(nn.LayerNorm, eps=1e-5))
    assert type(model[0].norm) is nn.LayerNorm
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)


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


def test_channel_first_hands_the_mask_to_the_norm():
    with pytest.raises(ValueError, match="pad_mask"):
        ChannelFirst(RowScale(4))(torch.randn(2, 4, 5, 3), torch.zeros(2, 4, dtype=torch.bool))


def test_activation_inside_a_norm_stays():
    model = nn.Sequential(layers.LayerNormAct2d(4, act_layer=nn.ReLU), layers.LayerNormAct2d(4, apply_act=False))
    report = replace_norms(model, RowScale)
    assert [row.new for row in report.rows] == [
        "ChannelFirst(RowScale(4, eps=0.001)) + ReLU",
        "ChannelFirst(RowScale(4, eps=0.001))",
    ]
    assert model[0](torch.randn(2, 4, 3, 3)).min() == 0
