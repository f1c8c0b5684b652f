from functools import partial

import pytest
import torch
from torch import nn

from un import norms
from un.surgery import share_pad_mask

B, N, C = 3, 5, 4
KINDS = [norms.UnifiedNorm, norms.BatchNorm, norms.PowerNorm, norms.MovingAverageBatchNorm, norms.RepBatchNorm]
KINDS += [partial(norms.ProgressiveRepBatchNorm, steps=5), norms.RMSNorm, norms.DynamicTanh]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(B, N, dtype=torch.bool)
    mask[1, 3:] = mask[2, 1:] = True
    return torch.randn(B, N, C, generator=generator), mask


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_mask_does_what_a_passed_one_does(kind, batch):
    x, mask = batch
    passed, shared = kind(C), nn.Sequential(nn.Linear(C, C), kind(C))
    expected = passed(x, mask)
    with share_pad_mask(shared, mask):
        y = shared[1](x)
    assert torch.equal(y, expected)
    for name, value in passed.state_dict().items():
        assert torch.equal(shared[1].state_dict()[name], value), name


def test_blocks_nest_and_end_also_after_an_error(batch):
    _, mask = batch
    model = nn.ModuleList([norms.BatchNorm(C), norms.BatchNorm(C)])
    with share_pad_mask(model, mask):
        with share_pad_mask(model[0], ~mask):
            assert torch.equal(model[0].shared_pad_mask, ~mask)
            assert torch.equal(model[1].shared_pad_mask, mask)
        with pytest.raises(ValueError, match="expected input"), share_pad_mask(model[0], ~mask):
            model[0](torch.zeros(C + 1))
        assert torch.equal(model[0].shared_pad_mask, mask)
    assert model[0].shared_pad_mask is None
    assert model[1].shared_pad_mask is None


def test_a_passed_mask_wins(batch):
    x, mask = batch
    norm, expected = norms.BatchNorm(C), norms.BatchNorm(C)
    with share_pad_mask(norm, ~mask):
        assert torch.equal(norm(x, mask), expected(x, mask))


def test_calibration_leaves_shared_padding_out(batch):
    x, mask = batch
    norm = norms.UnifiedNorm(C)

    def run(model, inputs):
        with share_pad_mask(model, mask):
            model(inputs)

    norms.calibrate(norm, [x], run)
    assert torch.allclose(norm.running_var, x[~mask].square().mean(0))
