"""Taking the norms out of trained models: what is fitted on what, what folds afterwards, and what is refused."""

import copy
from functools import partial

import pytest
import timm
import torch
from torch import nn

from un.folding import fold_norms
from un.norms import (
    BatchNorm,
    CenteredMap,
    ChannelMap,
    MovingAverageBatchNorm,
    ProgressiveRepBatchNorm,
    RepBatchNorm,
    UnifiedNorm,
    set_training_length,
)
from un.retrofit import calibration as module
from un.retrofit import retrofit
from un.surgery import share_pad_mask

C = 6


class Block(nn.Module):
    def __init__(self, norm=nn.LayerNorm):
        super().__init__()
        self.norm, self.linear = norm(C), nn.Linear(C, C)

    def forward(self, x):
        return x + torch.tanh(self.linear(self.norm(x)))


def draw_model(*modules, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(*(modules or (nn.Linear(C, C), Block(), Block(), nn.LayerNorm(C), nn.Linear(C, 3))))
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.3, 0.5)
    return model


def draw_batches(count=5, size=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 4, C, generator=generator) for _ in range(count)]


def fit_directly(model, batches):
    """The maps of all norms by a straight computation: one after the other, on all rows at once."""
    original, changed, x = model.double().eval(), copy.deepcopy(model).double().eval(), torch.cat(batches).double()
    maps = []
    for name in [name for name, part in model.named_modules() if isinstance(part, nn.LayerNorm)]:
        seen = {}
        original.get_submodule(name).register_forward_hook(lambda _, args, y, seen=seen: seen.update(y=y))
        changed.get_submodule(name).register_forward_hook(lambda _, args, y, seen=seen: seen.update(x=args[0]))
        original(x), changed(x)
        rows, target = (seen[key].detach().flatten(0, -2) for key in "xy")
        gap = rows - rows.mean(0)
        scale = (gap * target).sum(0) / gap.square().sum(0)
        maps.append((scale, target.mean(0) - scale * rows.mean(0)))
        new = ChannelMap(C, dtype=torch.float64)
        new.weight.data, new.bias.data = maps[-1]
        changed.set_submodule(name, new)
    return maps


def list_maps(model):
    return [part for part in model.modules() if isinstance(part, ChannelMap)]


@pytest.mark.parametrize("held", [2**28, 0])
def test_each_map_is_the_least_squares_one_for_what_reaches_it_now(monkeypatch, held):
    """Whether all batches are held, or all but one start anew for every norm."""
    monkeypatch.setattr(module, "HELD_BYTES", held)
    model, batches = draw_model(), draw_batches()
    before = copy.deepcopy(model.state_dict())
    changed, report = retrofit(model, batches)
    for new, (scale, shift) in zip(list_maps(changed), fit_directly(copy.deepcopy(model), batches), strict=True):
        torch.testing.assert_close(new.weight.double(), scale, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(new.bias.double(), shift, rtol=1e-5, atol=1e-5)
    assert [row.site for row in report.rows] == ["1.norm", "2.norm", "3"]
    assert {row.rows for row in report.rows} == {5 * 8 * 4}
    assert all(row.r2_worst <= row.r2_median <= 1 for row in report.rows)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "3 norms taken out by least_squares" in str(report)


def test_large_means_and_outliers_cost_no_digits():
    model = nn.Sequential(nn.LayerNorm(C), nn.Linear(C, C))
    batches = [batch + 1e4 for batch in draw_batches()]
    batches[3][2, 1, 4] = 1e6
    changed, report = retrofit(model.double(), [batch.double() for batch in batches])
    rows = torch.cat(batches).flatten(0, -2).double()
    target, gap = model[0](rows).detach(), rows - rows.mean(0)
    torch.testing.assert_close(changed[0].weight, (gap * target).sum(0) / gap.square().sum(0), rtol=1e-10, atol=0)
    (row,) = report.rows
    assert row.largest == pytest.approx(1e6)
    assert row.outlier == pytest.approx(float((gap.abs().amax(0) / rows.std(0, correction=0)).max()))
    made, deviation = changed[0](rows).detach(), target.std(0, correction=0)
    for values, found in ((target, row.outlier_old), (made, row.outlier_new)):
        assert found == pytest.approx(float(((values - target.mean(0)).abs() / deviation).max()))


@pytest.mark.parametrize(
    ("method", "outcome"), [("least_squares", "folded"), ("scalar", "folded"), ("fake_layernorm", "affine folded")]
)
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm], ids=["layernorm", "rmsnorm"])
def test_rows_of_one_size_lose_nothing_and_fold(method, outcome, norm):
    """Where every row has the same mean and deviation, all methods give what the norm gives."""
    model = draw_model(norm(C), nn.Linear(C, C))
    batches = [nn.functional.layer_norm(batch, (C,)) * 3 for batch in draw_batches()]
    changed, report = retrofit(model, batches, method=method)
    torch.testing.assert_close(changed(batches[0]), model(batches[0]), rtol=1e-3, atol=1e-3)
    assert report.difference < 1e-3
    assert report.rows[0].r2_worst > 0.999
    expected = outcome if norm is nn.LayerNorm else "folded"
    assert [row.outcome for row in fold_norms(changed, batches[0][:2])[1].rows] == [expected]


@pytest.mark.parametrize(
    "factory",
    [
        UnifiedNorm,
        partial(UnifiedNorm, centering="batch"),
        BatchNorm,
        MovingAverageBatchNorm,
        RepBatchNorm,
        ProgressiveRepBatchNorm,
        ChannelMap,
    ],
)
def test_norms_with_statistics_start_as_the_fitted_map_and_go_on(factory):
    model, batches = draw_model(), draw_batches()
    plain, _ = retrofit(model.eval(), batches)
    changed, report = retrofit(model, batches, factory, "statistics")
    torch.testing.assert_close(changed(batches[0]), plain(batches[0]), rtol=1e-4, atol=1e-4)
    norm = changed[1].norm
    assert {row.new for row in report.rows} == {type(norm).__name__}
    reaches = model[0](torch.cat(batches)).detach().flatten(0, -2)
    moment, mean = norm.source.read_running()
    if moment is not None:
        expected = reaches.square().mean(0) if mean is None else reaches.var(0, correction=0)
        torch.testing.assert_close(moment, expected)
    set_training_length(changed, 10)
    changed.train()(batches[0]).sum().backward()
    assert all(parameter.grad is not None for parameter in norm.source.parameters())


def test_padding_stays_out_where_norms_are_told():
    model, batches = draw_model(), draw_batches()
    pad_mask = torch.zeros(8, 4, dtype=torch.bool)
    pad_mask[:, 2:] = True

    def run(model, batch):
        with share_pad_mask(model, pad_mask):
            return model(batch)

    dirty = [batch.masked_fill(pad_mask.unsqueeze(-1), 100.0) for batch in batches]
    changed, report = retrofit(model, dirty, run=run)
    expected, _ = retrofit(model, [batch[:, :2] for batch in batches])
    for left, right in zip(list_maps(changed), list_maps(expected), strict=True):
        torch.testing.assert_close(left.weight, right.weight)
        torch.testing.assert_close(left.bias, right.bias)
    assert report.rows[0].rows == 5 * 8 * 2


def test_memory_holds_only_some_of_the_batches(monkeypatch):
    """As many forwards stand at a norm at any time, however many batches there are."""
    monkeypatch.setattr(module, "HELD_BYTES", 3 * 8 * 4 * C * 4)
    standing, most = [0], [0]
    start, stop = module._Calibration._start, module._Course.stop

    def count_start(self, number, batch):
        standing[0] += 1
        most[0] = max(most[0], standing[0])
        return start(self, number, batch)

    def count_stop(self):
        standing[0] -= 1
        stop(self)

    monkeypatch.setattr(module._Calibration, "_start", count_start)
    monkeypatch.setattr(module._Course, "stop", count_stop)
    retrofit(draw_model(), draw_batches(count=9))
    assert (standing[0], most[0]) == (0, 4)


VIT = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("vit_tiny_patch16_224", 32, VIT),
        ("beit_base_patch16_224", 32, VIT),
        (
            "swin_tiny_patch4_window7_224",
            56,
            {"img_size": 56, "depths": (1, 1, 1, 1), "embed_dim": 12, "num_heads": (1, 1, 1, 1)},
        ),
        ("convnext_atto", 64, {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
    ],
)
def test_models_of_timm(name, size, options):
    model = timm.create_model(name, num_classes=7, **options)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    batches = [torch.randn(48, 3, size, size), torch.randn(48, 3, size, size)]
    changed, report = retrofit(model.eval(), batches)
    assert not any(isinstance(part, nn.LayerNorm) for part in changed.modules())
    assert all(row.r2_median > 0.5 for row in report.rows)
    folded, _ = fold_norms(changed, batches[0][:2])
    torch.testing.assert_close(folded(batches[0][:4]), changed(batches[0][:4]), rtol=1e-3, atol=1e-3)


def test_models_of_torch_without_its_fused_kernel():
    """At inference it computes LayerNorm itself, and calls no norm."""
    layer = nn.TransformerEncoderLayer(C, 2, 8, batch_first=True)
    changed, report = retrofit(nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(C)), draw_batches())
    assert len(report.rows) == 5
    assert changed.eval()(draw_batches()[0]).isfinite().all()


def test_inputs_by_name_and_several():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(C)

        def forward(self, left, right):
            return self.norm(left + right)

    model, batch = Pair(), draw_batches(1)[0]
    for batches in ([(batch, batch)], [{"left": batch, "right": batch}]):
        assert retrofit(model, batches)[1].rows[0].rows == 32


def test_a_kept_norm_and_frozen_ones():
    model = draw_model()
    model[1].norm.requires_grad_(False)
    changed, report = retrofit(model, draw_batches(), exclude="3")
    assert isinstance(changed[3], nn.LayerNorm)
    assert len(report.rows) == 2
    assert (changed[1].norm.weight.requires_grad, changed[2].norm.weight.requires_grad) == (False, True)


def test_the_map_over_channels_says_what_it_is():
    assert CenteredMap(C).affine() is None
    x = torch.randn(3, C)
    torch.testing.assert_close(CenteredMap(C)(x), x - x.mean(-1, keepdim=True))
    torch.testing.assert_close(ChannelMap(C, affine=False)(x), x)


def test_a_norm_with_an_activation_of_its_own():
    """The map is that of the norm alone; the activation stays behind it."""
    from timm.layers import LayerNormAct

    model = draw_model(LayerNormAct(C), nn.Linear(C, C))
    batches = [nn.functional.layer_norm(batch, (C,)) for batch in draw_batches()]
    changed, report = retrofit(model, batches)
    assert report.rows[0].r2_worst > 0.999
    torch.testing.assert_close(changed(batches[0]), model(batches[0]), rtol=1e-3, atol=1e-3)
