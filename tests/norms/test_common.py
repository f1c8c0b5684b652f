"""What every norm promises: shapes, types, state, no host synchronisation, memory, padding."""

import copy
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.norms.helpers import BUILDERS, OFFLINE, C, ForbidHostReads, advance, assert_same, copy_state, step
from un.norms import UnifiedNorm

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("shape", [(C,), (7, C), (2, 3, 2, 2, C)], ids=str)
def test_any_rank_and_strides_equal_flattened_rows(name, shape):
    x, grad = torch.randn(2, *shape)
    expected = step(BUILDERS[name](C), x.reshape(-1, C), grad.reshape(-1, C))
    strided = torch.stack([x, grad], -1)[..., 0], torch.stack([grad, x], -1)[..., 0]
    for inputs in ((x, grad), strided):
        y, x_grad, *gradients = step(BUILDERS[name](C), *inputs)
        assert y.shape == x_grad.shape == shape
        assert_same([y.view(-1, C), x_grad.view(-1, C), *gradients], expected)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=str
)
def test_types_in_and_out(name, dtype, tolerance):
    x, grad = torch.randn(2, 4, 3, C).to(dtype)
    reference = step(BUILDERS[name](C), x.float(), grad.float())[0]
    for parameter_type in (dtype, torch.float32):
        norm = BUILDERS[name](C, dtype=parameter_type)
        y, x_grad, *_ = step(norm, x, grad)
        assert y.dtype == x_grad.dtype == dtype
        assert all(buffer.dtype in (torch.float32, torch.float64, torch.int64) for buffer in norm.buffers())
        assert torch.allclose(y.float(), reference, atol=tolerance, rtol=tolerance)


def test_a_norm_cast_to_half_precision_keeps_its_statistics(norm):
    advance(norm)
    before = {key: value.clone() for key, value in norm.named_buffers()}
    norm.to(torch.bfloat16)
    assert_same(dict(norm.named_buffers()), before)
    assert all(parameter.dtype == torch.bfloat16 for parameter in norm.parameters())


def test_autocast_returns_the_input_type(norm):
    x = torch.randn(4, 3, C, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, z = norm(x), norm(x.float())
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, z.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in norm.buffers())


def test_meta_device_and_back(name):
    norm = BUILDERS[name](C, device="meta")
    y = norm(torch.empty(2, 3, C, device="meta", requires_grad=True))
    assert y.shape == (2, 3, C)
    y.sum().backward()
    norm = norm.to_empty(device="cpu")
    norm.reset_parameters()
    fresh = BUILDERS[name](C)
    assert_same(norm.state_dict(), fresh.state_dict())
    x = torch.randn(2, 3, C)
    assert torch.equal(norm(x), fresh(x))


def test_copies_continue_identically_mid_window(name, norm):
    advance(norm)
    loaded = BUILDERS[name](C)
    loaded.load_state_dict(norm.state_dict())
    twins = (norm, copy.deepcopy(norm), loaded)
    for twin in twins:
        advance(twin, calls=7, seed=2)
    for twin in twins[1:]:
        assert_same(twin.state_dict(), norm.state_dict())


def test_evaluation_changes_no_state(norm):
    advance(norm)
    before = copy_state(norm)
    norm.eval()(torch.randn(4, 3, C, requires_grad=True)).sum().backward()
    assert_same(norm.state_dict(), before)


def test_affine_is_the_inference_map_of_offline_norms(name, norm):
    advance(norm)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    affine = norm.eval().affine()
    if affine is None:
        assert name not in OFFLINE
    else:
        x = torch.randn(4, 3, C)
        assert torch.allclose(norm(x), affine[0] * x + affine[1], atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_no_host_synchronisation(norm, masked):
    mask = torch.rand(4, 3) < 0.3 if masked else None
    for training in (True, True, False):
        norm.train(training)
        x = torch.randn(4, 3, C, requires_grad=True)
        with ForbidHostReads():
            y = norm(x, mask)
            y.backward(torch.ones_like(y))


def test_the_synchronisation_check_works():
    with pytest.raises(AssertionError), ForbidHostReads():
        torch.ones(1).item()


@pytest.mark.parametrize("name", ["un", "un_centered", "batchnorm", "mabn", "powernorm_offline"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saves_one_activation(name, dtype):
    """As LayerNorm: the input and nothing else of its size."""
    saved = []

    def count(tensor):
        saved.append(tensor.nbytes)
        return tensor

    norm = BUILDERS[name](64)
    x = torch.randn(32, 17, 64, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        norm(x)
    assert sum(saved) <= x.nbytes + 8 * 64 * 8  # besides x only vectors


BAD_INPUTS = (
    (torch.zeros(2, 3, C + 1), None, "expected input (..., 6), got shape (2, 3, 7)"),
    (torch.zeros(()), None, "expected input (..., 6), got shape ()"),
    (torch.zeros(2, 3, C), torch.zeros(3, 2, dtype=torch.bool), "pad_mask must have shape (2, 3), got (3, 2)"),
    (torch.zeros(2, 3, C), torch.zeros(2, 3), "pad_mask must be boolean"),
)


@pytest.mark.parametrize("training", [True, False])
def test_bad_input_is_one_clear_line(norm, training):
    for x, mask, words in BAD_INPUTS:
        with pytest.raises(ValueError, match=f"^{re.escape(words)}.*$"):
            norm.train(training)(x, mask)


def test_without_affine(name):
    x, grad = torch.randn(2, 4, 3, C)
    bare = step(BUILDERS[name](C, affine=False), x, grad)
    assert_same(bare[:2], step(BUILDERS[name](C), x, grad)[:2], 1e-6)


def test_watch_gives_scalars(norm):
    advance(norm)
    assert all(value.shape == () and value.isfinite() for value in norm.watch().values())


def test_reset_steps_keeps_the_statistics():
    norm = BUILDERS["un"](C)
    advance(norm)
    before = copy_state(norm)
    norm.reset_steps()
    assert_same(norm.state_dict(), {**before, "iters": torch.zeros_like(before["iters"])})


def test_repr_shows_the_settings():
    text = repr(UnifiedNorm(C, window=(2, 8), centering="batch", filtration=True))
    for part in ("window=(2, 8)", "centering=batch", "filtration=True"):
        assert part in text
    assert "compensation" not in text  # official values are not repeated


sizes = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 9))


@pytest.mark.parametrize("name", BUILDERS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(size=sizes, seed=st.integers(0, 10**6), padding=st.sampled_from([0.0, 0.3, 0.9]))
def test_order_and_padding_of_random_batches(name, size, seed, padding):
    """Neither the order of the tokens nor what padded rows hold, even NaN, changes the other rows and the state."""
    generator = torch.Generator().manual_seed(seed)
    plain, shuffled, dirty = (BUILDERS[name](size[-1], dtype=torch.float64) for _ in range(3))
    for _ in range(3):
        x, grad = torch.randn(2, *size, generator=generator, dtype=torch.float64)
        mask = torch.rand(size[:2], generator=generator) < padding
        order = torch.randperm(mask.numel(), generator=generator)
        y, x_grad, *_ = step(plain, x, grad, mask)
        assert y.isfinite().all()
        assert x_grad.isfinite().all()
        found = step(shuffled, *(t.flatten(0, 1)[order].view(t.shape) for t in (x, grad, mask)))
        assert_same(found[:2], [t.flatten(0, 1)[order].view(t.shape) for t in (y, x_grad)], 1e-8)
        found = dirty(x.masked_fill(mask.unsqueeze(-1), math.nan), mask)
        assert torch.equal(found[~mask], y[~mask])
    assert_same(shuffled.state_dict(), plain.state_dict(), 1e-9)
    statistics = {key: value for key, value in plain.state_dict().items() if key not in plain.gradient_state}
    assert_same({key: dirty.state_dict()[key] for key in statistics}, statistics)
