"""One small model per rule and per refusal."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.folding.helpers import (
    TOKENS,
    C,
    check_fold,
    linear,
    list_norm_keys,
    make_model,
    make_tokens,
    outcomes,
    rules,
)
from un.folding import ScaleShift, fold_norms
from un.norms import BatchNorm, UnifiedNorm
from un.surgery import ChannelFirst

# Models of which every norm vanishes: rule, modules, forward, input shape.
VANISHING = {
    "linear, not the last": (
        "R1",
        {"a": linear(), "b": linear()},
        lambda m, x: m.b(m.a(m.norm(x)).relu()),
        TOKENS,
    ),
    "linear": ("R4", {"fc": linear()}, lambda m, x: m.fc(m.norm(x)), TOKENS),
    "new bias": ("R4", {"fc": linear(bias=False)}, lambda m, x: m.fc(m.norm(x)), TOKENS),
    "several readers": (
        "R4",
        {"q": linear(), "k": linear(bias=False)},
        lambda m, x: (lambda y: m.q(y[:, :1]) * m.k(y.transpose(0, 1)[:1].transpose(0, 1)))(m.norm(x)),
        TOKENS,
    ),
    "called twice": ("R4", {"fc": linear()}, lambda m, x: m.fc(m.norm(x)) + m.fc(m.norm(x.sin())), TOKENS),
    "matrix product": (
        "R4",
        {"fc": linear()},
        lambda m, x: torch.addmm(m.fc.bias, m.norm(x).flatten(0, 1), m.fc.weight.t()),
        TOKENS,
    ),
    "in place": ("R4", {"fc": linear()}, lambda m, x: m.fc(torch.zeros_like(x).copy_(m.norm(x))), TOKENS),
    "fused attention": (
        "R1",
        {"attn": nn.MultiheadAttention(C, 2, batch_first=True)},
        lambda m, x: (lambda y: m.attn(y, y, y)[0])(m.norm(x)),
        TOKENS,
    ),
    "padding": ("R4", {"fc": linear()}, lambda m, x: m.fc(F.pad(m.norm(x), (0, 0, 1, 2), value=0.5)), TOKENS),
    "mean": ("R4", {"fc": linear()}, lambda m, x: m.fc(m.norm(x).mean(1)), TOKENS),
    "windows": (
        "R4",
        {"fc": linear()},
        lambda m, x: m.fc(torch.roll(m.norm(x), 1, 1).view(2, 2, 2, 2, 2, C).transpose(2, 3).reshape(-1, 4, C)),
        (2, 16, C),
    ),
    "merging": (
        "R4",
        {"fc": nn.Linear(2 * C, 3, bias=False)},
        lambda m, x: m.fc(torch.cat((m.norm(x)[:, ::2], m.norm(x)[:, 1::2]), -1)),
        (2, 6, C),
    ),
    "convolution": (
        "R2",
        {"conv": nn.Conv2d(C, 4, 2, stride=2, bias=False)},
        lambda m, x: m.conv(m.norm(x).movedim(-1, 1)),
        (2, 4, 4, C),
    ),
    "grouped convolution": (
        "R2",
        {"conv": nn.Conv2d(C, 2 * C, 3, groups=4)},
        lambda m, x: m.conv(m.norm(x).movedim(-1, 1)),
        (2, 5, 5, C),
    ),
    "writer": ("R3", {"fc": linear(bias=False)}, lambda m, x: m.norm(m.fc(x)).relu(), TOKENS),
    "padded writer": (
        "R3",
        {"conv": nn.Conv2d(C, C, 3, padding=1)},
        lambda m, x: m.norm(m.conv(x.movedim(-1, 1)).movedim(1, -1)).tanh(),
        (2, 5, 5, C),
    ),
    "stream": (
        "R8 cumulative",
        {"a": linear(), "b": linear(), "c": linear()},
        lambda m, x: (lambda y: m.c(y + m.b(m.a(y).relu())))(m.norm(x)),
        TOKENS,
    ),
}


@pytest.mark.parametrize("name", VANISHING)
def test_a_norm_vanishes(name):
    rule, modules, forward, shape = VANISHING[name]
    model = make_model(forward, norm=BatchNorm(C), **modules)
    folded, report = check_fold(model, make_tokens(*shape), on_unfoldable="raise")
    assert rules(report) == {"norm": rule}
    assert report.rows[0].into
    assert type(folded.norm) is nn.Identity
    assert list_norm_keys(folded, report) == []


@pytest.mark.parametrize("padding", [0, 1])
def test_a_norm_of_concatenated_positions_names_its_rule(padding):
    model = make_model(
        lambda m, x: m.head(m.fc(m.norm(F.pad(m.stem(x), (0, 0, 0, 2 * padding)).reshape(2, -1, 2 * C))).relu()),
        stem=linear(),
        norm=BatchNorm(2 * C),
        fc=nn.Linear(2 * C, C, bias=False),
        head=linear(),
    )
    _, report = check_fold(model, make_tokens(2, 6, C), on_unfoldable="raise")
    assert rules(report) == {"norm": "R5"}


class Unsaved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(C, C), persistent=False)
        self.bias = nn.Parameter(torch.zeros(C))


# Models whose norm stays: what the report must name, modules, forward, input shape.
STAYING = {
    "activation": ("relu", {}, lambda m, x: m.norm(x).relu(), TOKENS),
    "output": ("output", {}, lambda m, x: m.norm(x), TOKENS),
    "second reader": ("sigmoid", {"fc": linear()}, lambda m, x: m.fc(m.norm(x)) * m.norm(x).sigmoid(), TOKENS),
    "raw reader of the weight": ("fc.weight", {"fc": linear()}, lambda m, x: m.fc(m.norm(x)) + m.fc(x), TOKENS),
    "other tokens": (
        "other values alike",
        {"fc": linear()},
        lambda m, x: m.fc(torch.cat((x[:, :1], m.norm(x)), 1)),
        TOKENS,
    ),
    "zeros laid beside it": (
        "other values alike",
        {"fc": linear()},
        lambda m, x: m.fc(torch.cat((m.norm(x), x.new_zeros(3, 0, C)), 1)),
        TOKENS,
    ),
    "padding of the channels": (
        "constant_pad_nd",
        {"fc": linear()},
        lambda m, x: m.fc(F.pad(m.norm(x)[..., 1:], (0, 1))),
        TOKENS,
    ),
    "masking with zeros": (
        "masked_fill",
        {"fc": linear()},
        lambda m, x: m.fc(m.norm(x).masked_fill(x[..., :1] > 0, 0.0)),
        TOKENS,
    ),
    "padded convolution": (
        "zero padding",
        {"conv": nn.Conv2d(C, 4, 3, padding=1)},
        lambda m, x: m.conv(m.norm(x).movedim(-1, 1)),
        (2, 4, 4, C),
    ),
    "bare weight": ("takes no bias", {"fc": linear()}, lambda m, x: F.linear(m.norm(x), m.fc.weight), TOKENS),
    "computed weight": ("mm", {"fc": linear()}, lambda m, x: m.norm(x).flatten(0, 1) @ m.fc.weight.exp(), TOKENS),
    "weight that is not saved": (
        "not saved",
        {"holder": Unsaved()},
        lambda m, x: F.linear(m.norm(x), m.holder.weight, m.holder.bias),
        TOKENS,
    ),
    "maximum before it": ("tanh", {"fc": linear()}, lambda m, x: m.norm(m.fc(x).amax(1)).tanh(), TOKENS),
    "masking with zeros before it": (
        "tanh",
        {"fc": linear()},
        lambda m, x: m.norm(m.fc(x).masked_fill(x[..., :1] > 0, 0.0)).tanh(),
        TOKENS,
    ),
    "changed in place": ("mul_", {"fc": linear()}, lambda m, x: m.fc(m.norm(x).mul_(x)), TOKENS),
}


@pytest.mark.parametrize("name", STAYING)
def test_a_norm_stays_and_the_report_names_its_reader(name):
    reason, modules, forward, shape = STAYING[name]
    model = make_model(forward, norm=BatchNorm(C), **modules)
    folded, report = check_fold(model, make_tokens(*shape))
    assert outcomes(report) == {"norm": "multiply-add"}
    assert reason in report.rows[0].stays
    assert isinstance(folded.norm, ScaleShift)
    assert f"norm  BatchNorm({C})" in str(report)
    with pytest.raises(ValueError, match="1 of 1 norms do not vanish: norm"):
        fold_norms(model, tuple(x.double() for x in make_tokens(*shape)), on_unfoldable="raise")


def test_a_padded_convolution_takes_a_norm_without_shift():
    model = make_model(
        lambda m, x: m.conv(m.norm(x)), norm=ChannelFirst(UnifiedNorm(C)), conv=nn.Conv2d(C, 4, 3, padding=1)
    )
    model.norm.bias.data.zero_()
    check_fold(model, make_tokens(2, C, 4, 4), on_unfoldable="raise")


def test_what_is_left_of_a_channel_first_norm_scales_axis_one():
    model = make_model(lambda m, x: m.norm(x).relu(), norm=ChannelFirst(BatchNorm(C)))
    folded, _ = check_fold(model, make_tokens(2, C, 4, 4))
    assert folded.norm.scale.shape == (C, 1, 1)


def test_a_weight_shared_by_two_norms_keeps_both():
    model = make_model(
        lambda m, x: m.fc(m.first(x)) + m.fc(m.second(x)), first=BatchNorm(C), second=BatchNorm(C), fc=linear()
    )
    _, report = check_fold(model, make_tokens())
    assert outcomes(report) == {"first": "multiply-add", "second": "multiply-add"}
    assert all("fc.weight serves several inputs" in row.stays for row in report.rows)


def test_a_zero_scale_folds_forward_and_backward():
    model = make_model(lambda m, x: m.b(m.first(m.a(m.second(x))).relu()), first=BatchNorm(C), second=BatchNorm(C))
    model.a, model.b = linear(), linear()
    for norm in (model.first, model.second):
        norm.weight.data[::2] = 0
    _, report = check_fold(model, make_tokens(), on_unfoldable="raise")
    assert rules(report) == {"first": "R3", "second": "R1"}


class Scale(nn.Module):
    """A LayerScale, or with `power` 2 something that looks like one."""

    def __init__(self, power: int = 1, shape: tuple[int, ...] = (-1,)) -> None:
        super().__init__()
        self.gamma, self.power, self.shape = nn.Parameter(torch.ones(C)), power, shape

    def forward(self, x):
        return x**self.power * self.gamma.view(self.shape)


def run_with_scale(m, x):
    return m.scale(m.conv(m.norm(x)))


@pytest.mark.parametrize("power", [1, 2])
def test_only_a_plain_factor_is_merged(power):
    model = make_model(
        run_with_scale, norm=ChannelFirst(BatchNorm(C)), conv=nn.Conv2d(C, C, 1), scale=Scale(power, (-1, 1, 1))
    )
    folded, report = check_fold(model, make_tokens(2, C, 4, 4), on_unfoldable="raise")
    assert type(folded.scale) is (nn.Identity if power == 1 else Scale)
    assert len(report.notes) == 2 - power


def test_a_factor_stays_where_others_read_what_it_scales():
    model = make_model(
        lambda m, x: (lambda y: m.scale(y) + y.tanh())(m.fc(m.norm(x))), norm=BatchNorm(C), fc=linear(), scale=Scale()
    )
    folded, report = check_fold(model, make_tokens(), on_unfoldable="raise")
    assert torch.equal(folded.scale.gamma, model.scale.gamma)
    assert report.notes == ()


def test_a_norm_whose_reader_is_a_factor_becomes_part_of_what_stays():
    model = make_model(lambda m, x: m.scale(m.norm(x)).tanh(), norm=BatchNorm(C), scale=Scale())
    folded, _ = check_fold(model, make_tokens())
    assert sum(isinstance(module, ScaleShift) for module in folded.modules()) == 1


def test_a_factor_alone_is_no_norm():
    with pytest.raises(ValueError, match="holds no norm"):
        fold_norms(make_model(lambda m, x: m.scale(m.fc(x)), fc=linear(), scale=Scale()), make_tokens())
