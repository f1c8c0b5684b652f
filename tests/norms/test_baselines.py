"""BN, RepBN, PRepBN, RMSNorm, DyT and calibration against torch or their own formulas."""

import pytest
import torch
from torch import nn

from tests.norms.helpers import assert_same, step
from un.norms import (
    BatchNorm,
    DynamicErf,
    DynamicTanh,
    GroupNorm,
    MovingAverageBatchNorm,
    PowerNorm,
    ProgressiveRepBatchNorm,
    RepBatchNorm,
    RMSNorm,
    ScaleNorm,
    UnifiedNorm,
    calibrate,
)

B, N, C = 4, 5, 6
DOUBLE = {"dtype": torch.float64}


def batches(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(2, B, N, C, generator=generator, **DOUBLE) * 2 + 1


def test_batchnorm_equals_torch_and_loads_its_state():
    ours, theirs = BatchNorm(C, **DOUBLE), nn.BatchNorm1d(C, **DOUBLE)
    for x, grad in batches():
        rows = x.flatten(0, 1).requires_grad_()
        theirs.zero_grad()
        z = theirs(rows)
        z.backward(grad.flatten(0, 1))
        expected = [z.view_as(x), rows.grad.view_as(x), theirs.weight.grad, theirs.bias.grad]
        assert_same(step(ours, x, grad), expected, 1e-11)
    state = {key: value for key, value in ours.state_dict().items() if key != "nonfinite_counter"}
    assert_same(state, dict(theirs.state_dict()), 1e-12)
    loaded = BatchNorm(C, **DOUBLE)
    loaded.load_state_dict(theirs.state_dict())
    assert torch.allclose(loaded.eval()(x), theirs.eval()(x.flatten(0, 1)).view_as(x), rtol=1e-12)


def test_batchnorm_gradient_is_exact_under_a_mask():
    torch.manual_seed(0)
    norm = BatchNorm(C, **DOUBLE)
    nn.init.normal_(norm.weight)
    x, grad = next(batches())
    mask = torch.rand(B, N) < 0.4
    _, ours, weight_grad, _ = step(norm, x, grad, mask)
    x.requires_grad_()
    weight = norm.weight.detach().clone().requires_grad_()
    mean, variance = x[~mask].mean(0), x[~mask].var(0, correction=0)
    theirs = torch.autograd.grad(weight * (x - mean) / (variance + norm.eps).sqrt(), (x, weight), grad)
    assert_same((ours, weight_grad), theirs, 1e-10)


@pytest.mark.parametrize("eta", [1.0, -0.5])
def test_rep_batchnorm_is_batchnorm_plus_a_multiple(eta):
    ours, plain = RepBatchNorm(C, initial_eta=eta, **DOUBLE), BatchNorm(C, **DOUBLE)
    for x, grad in batches():
        a = step(ours, x, grad)
        b = step(plain, x, grad)
        assert_same(a, (b[0] + eta * x, b[1] + eta * grad, *b[2:]), 1e-12)
        assert torch.allclose(ours.eta.grad, (grad * x).sum())
    assert torch.allclose(ours.eval()(x), plain.eval()(x) + eta * x)


def test_rep_batchnorm_language_variant_starts_at_zero():
    norm = RepBatchNorm(C, initial_eta=0, initial_weight=0)
    assert (norm(torch.randn(B, N, C)) == 0).all()
    nn.init.ones_(norm.weight)
    norm.reset_parameters()
    assert (norm.weight == 0).all()


@pytest.mark.parametrize("base", ["layernorm", "rmsnorm"])
def test_progressive_counters_and_mixture(base):
    """w = 2, T = 5: two calls of pure LN, then λ = 1, 0.8, ..., 0 and it stays 0."""
    norm = ProgressiveRepBatchNorm(C, steps=5, layer_norm_steps=2, base=base, **DOUBLE)
    rep = RepBatchNorm(C, **DOUBLE)
    shares = [1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0]
    for call, (share, (x, _)) in enumerate(zip(shares, batches(len(shares)), strict=True)):
        assert norm.watch()["layer_norm_share"].item() == pytest.approx(share)
        y = norm(x)
        if call < 2:
            assert norm.rep_norm.num_batches_tracked == 0  # untouched before the first mixed call
            expected = norm.base_norm(x)
        else:
            expected = share * norm.base_norm(x) + (1 - share) * rep(x)
            assert torch.allclose(norm.rep_norm.running_var, rep.running_var)
        assert torch.allclose(y, expected, rtol=1e-12)
    assert norm.iter == 0
    assert norm.source is norm.rep_norm.source
    assert torch.allclose(norm.eval()(x), rep.eval()(x))


def test_progressive_counts_once_in_several_calls():
    norm = ProgressiveRepBatchNorm(C, steps=5, calls_per_step=2)
    seen = []
    for _ in range(6):
        norm(torch.randn(B, N, C))
        seen.append(norm.iter.item())
    assert seen == [5, 4, 4, 3, 3, 2]


def test_progressive_takes_the_replaced_weights_into_its_layernorm():
    norm = ProgressiveRepBatchNorm(C)
    norm.copy_affine(torch.full((C,), 3.0), torch.full((C,), 2.0))
    assert (norm.base_norm.weight == 3).all()
    assert (norm.base_norm.bias == 2).all()


def test_rmsnorm_equals_torch_with_statistics_in_float32():
    x, _ = next(batches())
    assert torch.allclose(RMSNorm(C, **DOUBLE)(x), nn.RMSNorm(C, eps=1e-6, **DOUBLE)(x), rtol=1e-13)
    x = torch.full((2, C), 3e3, dtype=torch.float16)  # its square overflows float16
    assert torch.allclose(RMSNorm(C)(x).float(), torch.ones(2, C), atol=1e-2)


def test_scalenorm_gives_every_row_one_length():
    norm, (x, _) = ScaleNorm(C, **DOUBLE), next(batches())
    assert torch.allclose(norm(x), RMSNorm(C, eps=0, **DOUBLE)(x), rtol=1e-12)
    nn.init.constant_(norm.scale, 3.0)
    assert torch.allclose(norm(x), 3 * x / x.norm(dim=-1, keepdim=True), rtol=1e-12)
    assert torch.allclose(norm(1e-9 * x), 3 * 1e-9 * x / 1e-5, rtol=1e-12)  # below the least length
    zero = torch.zeros(2, C, requires_grad=True, **DOUBLE)
    norm(zero).sum().backward()
    assert zero.grad.isfinite().all()


def test_dynamic_tanh():
    norm = DynamicTanh(C, initial_alpha=2, **DOUBLE)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, _ = next(batches())
    assert torch.allclose(norm(x), norm.weight * torch.tanh(2 * x) + norm.bias)
    assert DynamicTanh(C, bias=False).bias is None


def test_dynamic_erf():
    norm = DynamicErf(C, initial_alpha=2, **DOUBLE)
    for parameter in (norm.weight, norm.bias, norm.offset):
        nn.init.normal_(parameter)
    x, _ = next(batches())
    assert torch.allclose(norm(x), norm.weight * torch.erf(2 * x + norm.offset) + norm.bias)
    norm.reset_parameters()
    assert torch.equal(norm(x), torch.erf(2 * x))


def test_groupnorm_equals_torch():
    norm, x = GroupNorm(C, num_groups=3, **DOUBLE), next(batches())[0]
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    expected = nn.GroupNorm(3, C, **DOUBLE)
    expected.load_state_dict(norm.state_dict())
    assert torch.allclose(norm(x), expected(x.reshape(-1, C)).reshape(x.shape), rtol=1e-13)
    with pytest.raises(ValueError, match="num_groups must divide num_features = 6, got 4"):
        GroupNorm(6, num_groups=4)


def test_powernorm_groups_must_divide():
    with pytest.raises(ValueError, match="num_groups must divide num_features = 6, got 4"):
        PowerNorm(6, num_groups=4)


@pytest.mark.parametrize("build", [UnifiedNorm, BatchNorm, MovingAverageBatchNorm, PowerNorm])
@pytest.mark.parametrize("masked", [False, True])
def test_calibration_pools_over_batches(build, masked):
    norm = build(C, **DOUBLE)
    xs = [x for x, _ in batches(3)]
    masks = [torch.rand(B, N, generator=torch.Generator().manual_seed(i)) < 0.3 for i in range(3)]
    run = (lambda m, b: m(b[0], pad_mask=b[1])) if masked else (lambda m, b: m(b[0]))
    assert calibrate(norm, zip(xs, masks, strict=True), run) == 1
    assert norm.training
    rows = norm.prepare(torch.cat([x[~m] if masked else x.flatten(0, 1) for x, m in zip(xs, masks, strict=True)]))
    moment, mean = norm.read_running()
    assert torch.allclose(moment, rows.square().mean(0) if mean is None else rows.var(0, correction=0))
    assert mean is None or torch.allclose(mean, rows.mean(0))


def test_calibration_counts_padding_where_the_norm_does():
    norm = UnifiedNorm(C, pad_moment="included", **DOUBLE)
    x, mask = torch.ones(B, N, C, **DOUBLE), torch.arange(B * N).view(B, N) > 4
    x[mask] = 3
    calibrate(norm, [x], lambda m, b: m(b, pad_mask=mask))
    assert torch.allclose(norm.running_var, x.flatten(0, 1).square().mean(0))


def test_calibration_over_what_is_not_finite_changes_nothing():
    model = nn.Sequential(BatchNorm(C), nn.Linear(C, C), UnifiedNorm(C))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(B, N, C)
    broken = x.clone()
    broken[0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="norm 0 met a value that is not finite"):
        calibrate(model, [x, broken])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_calibration_leaves_a_norm_that_nothing_reaches():
    norm, unused = BatchNorm(C), BatchNorm(C)
    model = nn.ModuleList([norm, unused])
    assert calibrate(model, [torch.randn(B, N, C)], lambda m, b: m[0](b)) == 1
    assert torch.equal(unused.running_var, torch.ones(C))


def test_calibration_needs_norms_and_batches():
    with pytest.raises(ValueError, match="no norm with running statistics"):
        calibrate(nn.Linear(2, 2), [])
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate(BatchNorm(C), [])
