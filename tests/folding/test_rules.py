"""One small model per rule and per refusal."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.folding.helpers import (
    OFFLINE,
    TOKENS,
    C,
    Scale,
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

MAPS = (2, 4, 4, C)


def case(expected, forward, shape=TOKENS, **modules):
    return expected, forward, shape, modules


def attend(m, x):
    y = m.norm(x)
    return m.attn(y, y, y)[0]


def read_twice(m, x):
    y = m.norm(x)
    return m.q(y[:, :1]) * m.k(y.transpose(0, 1)[:1].transpose(0, 1))


def add_branch(m, x):
    y = m.norm(x)
    return m.c(y + m.b(m.a(y).relu()))


def roll_windows(m, x):
    return m.fc(torch.roll(m.norm(x), 1, 1).view(2, 2, 2, 2, 2, C).transpose(2, 3).reshape(-1, 4, C))


# Models of which every norm vanishes, and by which rule.
VANISHING = {
    "linear, not the last": case("R1", lambda m, x: m.b(m.a(m.norm(x)).relu()), a=linear(), b=linear()),
    "new bias": case("R1", lambda m, x: m.fc(m.norm(x)), fc=linear(bias=False)),
    "several readers": case("R1", read_twice, q=linear(), k=linear(bias=False)),
    "called twice": case("R1", lambda m, x: m.fc(m.norm(x)) + m.fc(m.norm(x.sin())), fc=linear()),
    "matrix product": case(
        "R1", lambda m, x: torch.addmm(m.fc.bias, m.norm(x).flatten(0, 1), m.fc.weight.t()), fc=linear()
    ),
    "in place": case("R1", lambda m, x: m.fc(torch.zeros_like(x).copy_(m.norm(x))), fc=linear()),
    "fused attention": case("R1", attend, attn=nn.MultiheadAttention(C, 2, batch_first=True)),
    "padding": case("R1", lambda m, x: m.fc(F.pad(m.norm(x), (0, 0, 1, 2), value=0.5)), fc=linear()),
    "mean": case("R1", lambda m, x: m.fc(m.norm(x).mean(1)), fc=linear()),
    "windows": case("R1", roll_windows, (2, 16, C), fc=linear()),
    "merging": case(
        "R1",
        lambda m, x: m.fc(torch.cat((m.norm(x)[:, ::2], m.norm(x)[:, 1::2]), -1)),
        (2, 6, C),
        fc=nn.Linear(2 * C, 3, bias=False),
    ),
    "convolution": case(
        "R2", lambda m, x: m.conv(m.norm(x).movedim(-1, 1)), MAPS, conv=nn.Conv2d(C, 4, 2, stride=2, bias=False)
    ),
    "grouped convolution": case(
        "R2", lambda m, x: m.conv(m.norm(x).movedim(-1, 1)), MAPS, conv=nn.Conv2d(C, 2 * C, 3, groups=4)
    ),
    "writer": case("R3", lambda m, x: m.norm(m.fc(x)).relu(), fc=linear(bias=False)),
    "padded writer": case(
        "R3",
        lambda m, x: m.norm(m.conv(x.movedim(-1, 1)).movedim(1, -1)).tanh(),
        MAPS,
        conv=nn.Conv2d(C, C, 3, padding=1),
    ),
    "stream": case("R8 cumulative", add_branch, a=linear(), b=linear(), c=linear()),
}


@pytest.mark.parametrize("name", VANISHING)
def test_a_norm_vanishes(name):
    rule, forward, shape, modules = VANISHING[name]
    model = make_model(forward, norm=BatchNorm(C), **modules)
    folded, report = check_fold(model, make_tokens(*shape), on_unfoldable="raise")
    assert rules(report) == {"norm": rule}
    assert report.rows[0].into
    assert type(folded.norm) is nn.Identity
    assert list_norm_keys(folded, report) == []


@pytest.mark.parametrize("norm", OFFLINE)
def test_every_offline_norm_vanishes(norm):
    model = make_model(lambda m, x: m.fc(m.norm(x)), norm=OFFLINE[norm](C), fc=linear())
    folded, report = check_fold(model, make_tokens(), on_unfoldable="raise")
    assert list_norm_keys(folded, report) == []


class Unsaved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(C, C), persistent=False)
        self.bias = nn.Parameter(torch.zeros(C))


def mask(m, x):
    return m.norm(x).masked_fill(x[..., :1] > 0, 0.0)


def expand_weight(m, x):
    return m.norm(F.linear(x, m.fc.weight.expand(C, C))).tanh()


# Models whose norm stays, and what the report must name.
STAYING = {
    "activation": case("relu", lambda m, x: m.norm(x).relu()),
    "output": case("output", lambda m, x: m.norm(x)),
    "second reader": case("sigmoid", lambda m, x: m.fc(m.norm(x)) * m.norm(x).sigmoid(), fc=linear()),
    "raw reader of the weight": case("fc.weight", lambda m, x: m.fc(m.norm(x)) + m.fc(x), fc=linear()),
    "expanded weight": case(
        "tanh", lambda m, x: m.norm(F.linear(x, m.fc.weight.expand(C, C))).tanh(), fc=linear(out=1)
    ),
    "other tokens": case("other values", lambda m, x: m.fc(torch.cat((x[:, :1], m.norm(x)), 1)), fc=linear()),
    "zeros laid beside it": case(
        "other values", lambda m, x: m.fc(torch.cat((m.norm(x), x.new_zeros(3, 0, C)), 1)), fc=linear()
    ),
    "padding of the channels": case(
        "constant_pad_nd", lambda m, x: m.fc(F.pad(m.norm(x)[..., 1:], (0, 1))), fc=linear()
    ),
    "masking with zeros": case("masked_fill", lambda m, x: m.fc(mask(m, x)), fc=linear()),
    "padded convolution": case(
        "zero padding", lambda m, x: m.conv(m.norm(x).movedim(-1, 1)), MAPS, conv=nn.Conv2d(C, 4, 3, padding=1)
    ),
    "bare weight": case("takes no bias", lambda m, x: F.linear(m.norm(x), m.fc.weight), fc=linear()),
    "computed weight": case("mm", lambda m, x: m.norm(x).flatten(0, 1) @ m.fc.weight.exp(), fc=linear()),
    "weight that is not saved": case(
        "not saved", lambda m, x: F.linear(m.norm(x), m.holder.weight, m.holder.bias), holder=Unsaved()
    ),
    "maximum before it": case("tanh", lambda m, x: m.norm(m.fc(x).amax(1)).tanh(), fc=linear()),
    "masking with zeros before it": case(
        "tanh", lambda m, x: m.norm(m.fc(x).masked_fill(x[..., :1] > 0, 0.0)).tanh(), fc=linear()
    ),
    "changed in place": case("mul_", lambda m, x: m.fc(m.norm(x).mul_(x)), fc=linear()),
}


@pytest.mark.parametrize("name", STAYING)
def test_a_norm_stays_and_the_report_names_its_reader(name):
    reason, forward, shape, modules = STAYING[name]
    model = make_model(forward, norm=BatchNorm(C), **modules)
    folded, report = check_fold(model, make_tokens(*shape))
    assert outcomes(report) == {"norm": "multiply-add"}
    assert reason in report.rows[0].stays
    assert isinstance(folded.norm, ScaleShift)
    assert f"norm  BatchNorm({C})" in str(report)


def test_norms_that_do_not_vanish_can_be_an_error():
    model = make_model(lambda m, x: m.norm(x).relu(), norm=BatchNorm(C))
    with pytest.raises(ValueError, match="1 of 1 norms do not vanish: norm"):
        fold_norms(model, make_tokens(), on_unfoldable="raise")


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


# --- LayerScales ----------------------------------------------------------------------------------------------------


class SquaredScale(Scale):
    def forward(self, x):
        return super().forward(x * x)


@pytest.mark.parametrize("scale_type", [Scale, SquaredScale])
def test_only_a_plain_factor_is_merged(scale_type):
    model = make_model(
        lambda m, x: m.scale(m.conv(m.norm(x))),
        norm=ChannelFirst(BatchNorm(C)),
        conv=nn.Conv2d(C, C, 1),
        scale=scale_type((-1, 1, 1)),
    )
    folded, report = check_fold(model, make_tokens(2, C, 4, 4), on_unfoldable="raise")
    assert type(folded.scale) is (nn.Identity if scale_type is Scale else SquaredScale)
    assert len(report.notes) == (scale_type is Scale)


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
    with pytest.raises(ValueError, match="has no norm to fold"):
        fold_norms(make_model(lambda m, x: m.scale(m.fc(x)), fc=linear(), scale=Scale()), make_tokens())
