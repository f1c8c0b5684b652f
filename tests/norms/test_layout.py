from __future__ import annotations

from functools import partial

import pytest
import torch
from timm import layers
from torch import Tensor, nn
from torchvision.models import convnext

from tests.standins import RowScale
from un.norms import UnifiedNorm
from un.norms.layout import ChannelFirst, is_channel_first
from un.surgery import replace_norms


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
    assert is_channel_first(norm_type(channels)) is expected
    assert is_channel_first(norm_type(channels).to("meta")) is expected
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
