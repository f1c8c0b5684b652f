"""The training-inference discrepancy (TID): what it compares, and that taking note of it changes nothing."""

from functools import partial

import pytest
import torch

from un import norms

B, N, C = 4, 5, 6
NORMS = {
    "un": norms.UnifiedNorm,
    "un, centred": partial(norms.UnifiedNorm, centering="batch"),
    "un, window": partial(norms.UnifiedNorm, centering="window", warmup_steps=0),
    "batchnorm": norms.BatchNorm,
    "rep_batchnorm": norms.RepBatchNorm,
    "mabn": norms.MovingAverageBatchNorm,
    "powernorm": partial(norms.PowerNorm, num_groups=2),
}


@pytest.mark.parametrize("name", NORMS)
def test_running_statistics_are_compared_with_the_batch(name: str) -> None:
    norm = NORMS[name](C, dtype=torch.float64)
    assert norm.measure_discrepancy() == {}
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        x = torch.randn(B, N, C, generator=generator, dtype=torch.float64) * 2 + 1
        x[..., 0] = 0  # a dead channel
        mask = torch.rand(B, N, generator=generator) < 0.3
        norm(x, mask)
    rows, (running, running_mean) = norm.prepare(x)[~mask], norm.read_running()
    mean = 0 if running_mean is None else rows.mean(0)
    deviation = ((rows - mean).square().mean(0) + norm.eps).sqrt()
    expected = {"scale_discrepancy": ((running + norm.eps).sqrt() / deviation - 1).abs().mean()}
    if running_mean is not None:
        expected["mean_discrepancy"] = ((running_mean - mean) / deviation).abs().mean()
    found = {key: value for key, value in norm.watch().items() if "discrepancy" in key}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert value > 0
        torch.testing.assert_close(found[key], value)
    state = {key: value.clone() for key, value in norm.state_dict().items()}
    norm.eval()(x, mask)
    torch.testing.assert_close(norm.measure_discrepancy(), found)  # of the latest training call
    assert all(torch.equal(value, state[key]) for key, value in norm.state_dict().items())


def test_a_wrapped_norm_is_watched() -> None:
    norm = norms.ProgressiveRepBatchNorm(C, steps=3)
    norm(torch.randn(B, N, C))
    watched = norm.watch()
    assert watched["scale_discrepancy"] == norm.source.measure_discrepancy()["scale_discrepancy"]
