"""What is measured at a norm's input, against direct formulas and against what the norms themselves do."""

import math
from typing import Any

import pytest
import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from tests.foreign_norms import AdaptiveNorm, RootMeanSquareNorm, SequenceNorm
from un.analysis.recorded_norms import RecordedNorm, choose_norms
from un.analysis.recorder import MOMENT_PERCENTS, Recorder
from un.analysis.statistics import measure_gradient, measure_outlier, measure_square, observe
from un.norms import BatchNorm, PowerNorm, ProgressiveRepBatchNorm, UnifiedNorm
from un.norms.core.moments import measure_moments
from un.surgery import ChannelFirst, share_pad_mask
from un.surgery.recognition import list_norms

CHANNELS = 6


def make_input(seed: int = 0, spike: float = 1.0) -> Tensor:
    x = torch.randn(5, 7, CHANNELS, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, CHANNELS + 1)
    x[..., 2] *= spike
    return x


def make_site(norm: nn.Module) -> RecordedNorm:
    return choose_norms(list_norms(nn.Sequential(norm)))[0]


def test_moments_peak_and_rows_leave_padding_out() -> None:
    x, mask = make_input(), torch.zeros(5, 7, dtype=torch.bool)
    mask[:, 5:] = True
    x[mask] = torch.inf
    seen = observe(make_site(UnifiedNorm(CHANNELS)), x, mask)
    kept = x[~mask]
    torch.testing.assert_close(seen.moment, kept.square().mean(0))
    torch.testing.assert_close(seen.peak, kept.abs().max() / kept.square().mean().sqrt())
    assert int(seen.num_rows) == 25


def test_moment_is_around_zero_whatever_the_norm_subtracts() -> None:
    site, x = make_site(BatchNorm(CHANNELS)), make_input() + 3
    torch.testing.assert_close(observe(site, x, None).moment, x.square().mean((0, 1)))
    torch.testing.assert_close(measure_square(site, x, None), x.square().mean((0, 1)))


def scale_groups(x: Tensor) -> Tensor:
    """What PowerNorm with two groups makes of x before its moment."""
    groups = x.unflatten(-1, (2, CHANNELS // 2))
    return (groups / (groups.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2)


@pytest.mark.parametrize(
    ("norm", "own"),
    [
        (UnifiedNorm(CHANNELS), lambda x: x.square().mean((0, 1))),
        (BatchNorm(CHANNELS), lambda x: x.var((0, 1), correction=0)),
        (UnifiedNorm(CHANNELS, centering="batch"), lambda x: x.var((0, 1), correction=0)),
        (ProgressiveRepBatchNorm(CHANNELS, steps=5), lambda x: x.var((0, 1), correction=0)),
        (PowerNorm(CHANNELS, num_groups=2), lambda x: scale_groups(x).square().mean((0, 1))),
    ],
    ids=["un", "batchnorm", "un centered", "prepbn", "powernorm"],
)
def test_running_ratio_compares_the_norms_own_statistic(norm: nn.Module, own: Any) -> None:
    site, x = make_site(norm), make_input() + 1
    running, _ = site.read_running()
    assert running is not None
    running.copy_(torch.arange(1.0, CHANNELS + 1))  # a view of the buffer
    seen = observe(site, x, None)
    assert seen.running_ratio is not None
    torch.testing.assert_close(seen.running_ratio, (own(x) + site.eps) / (torch.arange(1.0, CHANNELS + 1) + site.eps))


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"threshold_scope": "channel", "threshold_factor": 60.0},
        {"filter_decision": "mean", "threshold_factor": 0.5},
        {"centering": "window"},
    ],
    ids=str,
)
def test_gap_exceeds_threshold_exactly_where_the_norm_filters(switches: dict[str, Any]) -> None:
    norm = UnifiedNorm(CHANNELS, warmup_steps=0, filtration=True, **switches)
    struck = []
    for call in range(40):
        x = make_input(call, spike=12.0 if call % 7 == 3 else 1.0)
        before = {name: value.clone() for name, value in norm.state_dict().items()}
        moments = measure_moments(x.reshape(-1, CHANNELS), None, centered="centering" in switches)
        gap, threshold = measure_outlier(norm, moments)
        for name, value in norm.state_dict().items():
            assert torch.equal(value, before[name]), name
        skipped = int(norm.skip_counter)
        norm(x)
        if call < norm.window[0]:
            assert gap.isnan(), call
        else:
            struck.append(int(norm.skip_counter) > skipped)
            assert bool(gap > threshold) == struck[-1], call
    assert 0 < sum(struck) < len(struck)


def test_a_batch_that_the_norm_refuses_has_no_gap() -> None:
    norm = UnifiedNorm(CHANNELS, warmup_steps=0)
    for call in range(6):
        norm(make_input(call))
    moments = measure_moments(make_input(9).reshape(-1, CHANNELS).fill_(torch.inf), None)
    assert all(value.isnan() for value in measure_outlier(norm, moments))
    assert norm.nonfinite_counter == 0


def test_gradient_is_what_the_norm_writes_into_its_window() -> None:
    norm = UnifiedNorm(CHANNELS, warmup_steps=0, compensation_start=0)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    site = make_site(norm)
    for call in range(1, 8):
        norm.zero_grad()
        (norm(make_input(call)) * make_input(100 + call)).sum().backward()
        gradient = measure_gradient(site, 35)
        assert gradient is not None
        torch.testing.assert_close(gradient, norm.buffer_gz[call % 4])
    assert measure_gradient(make_site(UnifiedNorm(CHANNELS, affine=False)), 35) is None


class Sites(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = LayerNorm2d(4)
        self.wrapped = ChannelFirst(UnifiedNorm(4))
        self.first = nn.LayerNorm(CHANNELS)
        self.again = nn.Sequential(self.first, ProgressiveRepBatchNorm(CHANNELS, steps=5))

    def forward(self, image: Tensor, x: Tensor) -> Tensor:
        self.wrapped(self.map(image))
        return self.again(x)


def test_sites_have_one_name_each_and_globs_choose() -> None:
    model = Sites()
    assert [(site.layer, site.name) for site in choose_norms(list_norms(model))] == [
        *((0, "map"), (1, "wrapped"), (2, "first"), (3, "again.1"))
    ]
    assert [(site.layer, site.name) for site in choose_norms(list_norms(model), ["*r*"], ["first"])] == [(1, "wrapped")]
    with pytest.raises(ValueError, match=r"leave no norm; the model's are: map, wrapped, first, again\.1"):
        choose_norms(list_norms(model), ["norm"])


def test_norms_of_other_projects_are_seen_along_their_axis() -> None:
    model = nn.Sequential(SequenceNorm(4), AdaptiveNorm(4), RootMeanSquareNorm(4))
    sequences, rows = choose_norms(list_norms(model))
    assert (sequences.name, rows.name) == ("0", "2")  # an adaptive norm is not understood
    x = torch.randn(2, 4, 5)
    assert torch.equal(sequences.flatten(x), x.transpose(1, 2).reshape(10, 4))
    assert torch.equal(rows.flatten(x.transpose(1, 2)), sequences.flatten(x))


def test_recorder_sees_every_layout_and_lets_go() -> None:
    model = Sites()
    recorder = Recorder(choose_norms(list_norms(model)))
    image, x = torch.randn(2, 4, 3, 3), make_input()
    recorder.attach(full=False)
    model(image, x)
    recorder.attach(full=True)
    model(2 * image, x).sum().backward()
    rows = recorder.collect(5)
    recorder.detach()
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert [(row["step"], row["site"], row["channels"]) for row in rows] == [
        *((5, "map", 4), (5, "wrapped", 4), (5, "first", CHANNELS), (5, "again.1", CHANNELS))
    ]
    moments = (2 * image).square().mean((0, 2, 3))
    quantiles = moments.quantile(torch.tensor(MOMENT_PERCENTS) / 100).tolist()
    assert [rows[0][f"moment_p{percent}"] for percent in MOMENT_PERCENTS] == pytest.approx(quantiles, rel=1e-5)
    assert rows[0]["fluctuation_p50"] == pytest.approx(torch.log(torch.tensor(4.0)).item(), rel=1e-3)
    assert rows[2]["fluctuation_p100"] == 0
    assert rows[1]["calls"] == 2
    assert all(math.isnan(rows[0][name]) for name in ("calls", "gap", "running_ratio_p50"))  # what LayerNorm lacks


def test_recorder_finds_masks_that_are_shared() -> None:
    norm, x, mask = UnifiedNorm(CHANNELS), make_input(), torch.zeros(5, 7, dtype=torch.bool)
    mask[2:] = True
    expected = x[~mask].square().mean(0).quantile(0.5).item()
    model = nn.Sequential(norm)
    recorder = Recorder(choose_norms(list_norms(model)))
    for call in (lambda: norm(x, mask), lambda: norm(x, pad_mask=mask), lambda: norm(x)):
        recorder.attach(full=True)
        with share_pad_mask(model, mask):
            call()
        assert recorder.collect(1)[0]["moment_p50"] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(x.square().mean((0, 1)).quantile(0.5).item(), rel=1e-3)
