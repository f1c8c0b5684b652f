"""What a retrofit refuses, in one line and before anything is changed."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from tests.retrofit.test_retrofit import Block, C, draw_batches, draw_model
from un.norms import BatchNorm, RMSNorm
from un.retrofit import calibration as module
from un.retrofit import retrofit


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(C)

    def forward(self, x):
        return self.norm(torch.tanh(self.norm(x)))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.LayerNorm(C), nn.LayerNorm(C)

    def forward(self, x):
        return self.used(x)


class Sometimes(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(C), nn.LayerNorm(C)

    def forward(self, x):
        return self.first(x) if len(x) > 5 else self.second(x)


NAN = [torch.full((8, 4, C), torch.nan)]


@pytest.mark.parametrize(
    ("model", "batches", "options", "message"),
    [
        (draw_model(), draw_batches(), {"method": "magic"}, "method must be one of least_squares, scalar"),
        (draw_model(), draw_batches(), {"method": "statistics"}, "'statistics' needs a norm_factory"),
        (draw_model(), draw_batches(), {"norm_factory": RMSNorm}, "fixed map at inference, not RMSNorm"),
        (draw_model(), draw_batches(), {"norm_factory": nn.LayerNorm}, "fixed map at inference, not LayerNorm"),
        (
            draw_model(),
            draw_batches(),
            {"norm_factory": BatchNorm, "method": "fake_layernorm"},
            "linear map over channels, which a BatchNorm cannot be",
        ),
        (
            draw_model(),
            draw_batches(),
            {"norm_factory": partial(BatchNorm, affine=False)},
            "BatchNorm cannot be the map that was fitted: it needs a weight and a bias",
        ),
        (draw_model(nn.Linear(C, C)), draw_batches(), {}, "Sequential has no norm to replace"),
        (nn.LayerNorm(C), draw_batches(), {}, "the model itself is a norm"),
        (draw_model(), [], {}, "at least one batch"),
        (draw_model(), [torch.randn(1, 5, C)], {}, "1.norm is given 5 rows .* fewer than its 6 channels"),
        (
            draw_model(),
            [*draw_batches(), *NAN],
            {},
            "1.norm is given values that are not finite by .* batch 6",
        ),
        (Twice(), draw_batches(), {}, "norm is called more than once in a forward"),
        (Unused(), draw_batches(), {}, "the calibration data never reach unused"),
        (Sometimes(), [*draw_batches(), torch.randn(4, 4, C)], {}, "batch 6 calls second where others call first"),
        (draw_model(), draw_batches(), {"exclude": "none"}, "exclude 'none' matches no norm"),
        (draw_model(), ["text"], {}, "example_inputs must be a tensor"),
    ],
)
def test_refuses_in_one_line_and_changes_nothing(model, batches, options, message):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message) as caught:
        retrofit(model, batches, **options)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_iterator_serves_as_long_as_all_its_batches_are_held(monkeypatch):
    model, batches = draw_model(), draw_batches()
    expected, _ = retrofit(model, batches)
    changed, _ = retrofit(model, iter(batches))
    assert torch.equal(changed[1].norm.weight, expected[1].norm.weight)
    monkeypatch.setattr(module, "HELD_BYTES", 0)
    with pytest.raises(ValueError, match="run through only once"):
        retrofit(model, iter(batches))


def test_what_a_forward_raises_comes_through():
    class Broken(Block):
        def forward(self, x):
            super().forward(x)
            raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        retrofit(nn.Sequential(Broken()), draw_batches())
