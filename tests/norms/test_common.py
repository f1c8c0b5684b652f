"""What every norm promises: shapes, types, state, empty batches, no host synchronisation, memory."""

import copy
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.norms.helpers import BUILDERS, STATISTICAL, C, advance, copy_state, step
from un.norms import UnifiedNorm

RUNNING = [name for name in STATISTICAL if name != "prepbn"]
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=BUILDERS)
def name(request):
    torch.manual_seed(0)
    return request.param


@pytest.fixture
def norm(name):
    return BUILDERS[name](C)


@pytest.mark.parametrize("shape", [(C,), (7, C), (3, 4, C), (2, 3, 4, C), (2, 3, 2, 2, C)], ids=str)
def test_any_rank_equals_flattened_rows(name, shape):
    x, grad = torch.randn(shape), torch.randn(shape)
    nd, flat = BUILDERS[name](C), BUILDERS[name](C)
    ours = step(nd, x, grad)
    theirs = step(flat, x.reshape(-1, C), grad.reshape(-1, C))
    assert ours[0].shape == ours[1].shape == x.shape
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None and b is None) or torch.equal(a.reshape(b.shape), b)


def test_non_contiguous_input_and_gradient(name):
    x, grad = torch.randn(5, 4, C), torch.randn(5, 4, C)
    ours = step(BUILDERS[name](C), x.transpose(0, 1), grad.transpose(0, 1))
    theirs = step(BUILDERS[name](C), x.transpose(0, 1).contiguous(), grad.transpose(0, 1).contiguous())
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-6)
    expanded = step(BUILDERS[name](C), x, torch.ones(()).expand(5, 4, C))
    assert torch.allclose(expanded[1], step(BUILDERS[name](C), x, torch.ones(5, 4, C))[1], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("module", ["cast", "float32"])
def test_types_in_and_out(name, dtype, module):
    norm = BUILDERS[name](C, dtype=dtype if module == "cast" else torch.float32)
    x = torch.randn(4, 3, C).to(dtype)
    y, x_grad, *_ = step(norm, x, torch.randn(4, 3, C).to(dtype))
    assert y.dtype == x_grad.dtype == dtype
    for buffer in norm.buffers():
        assert buffer.dtype in (torch.float32, torch.float64, torch.int64)
    reference = step(BUILDERS[name](C), x.float(), torch.randn(4, 3, C))[0]
    tolerance = {torch.float64: 1e-5, torch.float32: 1e-6, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    assert torch.allclose(y.float(), reference, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_module_keeps_its_statistics(name, dtype):
    norm = BUILDERS[name](C)
    advance(norm)
    before = {key: value.clone() for key, value in norm.named_buffers()}
    norm.to(dtype)
    for key, value in norm.named_buffers():
        assert torch.equal(value, before[key]), key
    assert all(parameter.dtype == dtype for parameter in norm.parameters())


def test_autocast_returns_the_input_type(norm):
    x = torch.randn(4, 3, C, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(x)
        z = norm(x.float())
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad.dtype == torch.bfloat16
    assert z.dtype == torch.float32
    for buffer in norm.buffers():
        assert buffer.dtype in (torch.float32, torch.int64)


def test_meta_device_and_back(name):
    norm = BUILDERS[name](C, device="meta")
    y = norm(torch.empty(2, 3, C, device="meta", requires_grad=True))
    assert y.shape == (2, 3, C)
    y.sum().backward()
    norm = norm.to_empty(device="cpu")
    norm.reset_parameters()
    fresh = BUILDERS[name](C)
    for key, value in fresh.state_dict().items():
        assert torch.equal(norm.state_dict()[key], value), key
    x = torch.randn(2, 3, C)
    assert torch.equal(norm(x), fresh(x))


@pytest.mark.parametrize("how", ["deepcopy", "state_dict"])
def test_copies_continue_identically_mid_window(name, how):
    norm = BUILDERS[name](C)
    advance(norm, calls=5)
    if how == "deepcopy":
        twin = copy.deepcopy(norm)
    else:
        twin = BUILDERS[name](C)
        twin.load_state_dict(norm.state_dict())
    advance(norm, calls=7, seed=2)
    advance(twin, calls=7, seed=2)
    for key, value in norm.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value), key


def test_two_forwards_before_two_backwards(name):
    """The backward uses what its own forward saw; the official layer refuses this order."""
    norm = BUILDERS[name](C)
    advance(norm)
    x = [torch.randn(4, 3, C, requires_grad=True) for _ in range(2)]
    y = [norm(v) for v in x]
    for v in y:
        v.sum().backward()
    assert all(v.grad.isfinite().all() for v in x)


def test_evaluation_changes_nothing(norm):
    advance(norm)
    before = copy_state(norm)
    norm.eval()
    norm(torch.randn(4, 3, C, requires_grad=True)).sum().backward()
    for key, value in norm.state_dict().items():
        assert torch.equal(value, before[key]), key


CHANGED_IN_TRAINING = {
    "un": {"running_var", "ema_gz", "buffer_x2", "buffer_gz", "iters"},
    "un_centered": {"running_var", "ema_gz", "buffer_x2", "buffer_gz", "iters", "running_mean", "buffer_mean"},
    "batchnorm": {"running_mean", "running_var", "num_batches_tracked"},
    "powernorm": {"running_phi", "ema_gz", "iters"},
    "mabn": {"running_var", "buffer_x2", "buffer_gz", "iters"},
    "rmsnorm": set(),
    "dyt": set(),
    "rep_batchnorm": {"running_mean", "running_var", "num_batches_tracked"},
}


@pytest.mark.parametrize("name", CHANGED_IN_TRAINING)
def test_training_changes_exactly_the_documented_state(name):
    norm = BUILDERS[name](C)
    advance(norm, calls=1)
    before = copy_state(norm)
    advance(norm, calls=1, seed=3)
    changed = {key for key, value in norm.state_dict().items() if not torch.equal(value, before[key])}
    expected = CHANGED_IN_TRAINING[name] - ({"buffer_mean"} if name == "un_centered" else set())
    assert changed == expected


@pytest.mark.parametrize("name", [n for n in RUNNING if n != "powernorm"])
def test_affine_is_the_inference_map(name):
    norm = BUILDERS[name](C)
    advance(norm)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    norm.eval()
    scale, shift = norm.affine()
    x = torch.randn(4, 3, C)
    assert torch.allclose(norm(x), scale * x + shift, atol=1e-6)


@pytest.mark.parametrize("name", ["powernorm", "rmsnorm", "dyt"])
def test_norms_that_are_not_offline_have_no_affine_map(name):
    assert BUILDERS[name](C).affine() is None


class ForbidHostReads(TorchDispatchMode):
    """Fails on the operators that copy a value from the device to the host, or whose output shape depends on one."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.FORBIDDEN, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("masked", [False, True])
def test_no_host_synchronisation(name, masked):
    norm = BUILDERS[name](C)
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


@pytest.mark.parametrize("name", ["un", "un_paper", "un_centered", "batchnorm", "mabn", "powernorm_offline"])
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


@pytest.mark.parametrize(
    ("x", "mask", "words"),
    [
        (torch.zeros(2, 3, C + 1), None, "expected input (..., 6), got shape (2, 3, 7)"),
        (torch.zeros(()), None, "expected input (..., 6), got shape ()"),
        (torch.zeros(2, 3, C), torch.zeros(3, 2, dtype=torch.bool), "pad_mask must have shape (2, 3), got (3, 2)"),
        (torch.zeros(2, 3, C), torch.zeros(2, 3), "pad_mask must be boolean"),
    ],
)
def test_bad_input_is_one_clear_line(norm, x, mask, words):
    for training in (True, False):
        norm.train(training)
        with pytest.raises(ValueError, match=re.escape(words)) as error:
            norm(x, mask)
        assert "\n" not in str(error.value)


def test_bad_sizes_are_refused(name):
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
        BUILDERS[name](0)


def test_without_affine(name):
    norm = BUILDERS[name](C, affine=False)
    x = torch.randn(4, 3, C, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    with_affine = BUILDERS[name](C)
    assert torch.allclose(y, with_affine(x), atol=1e-6)
    assert x.grad.shape == x.shape


def test_frozen_parameters_still_pass_the_gradient(norm):
    for parameter in norm.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(4, 3, C, requires_grad=True)
    norm(x).square().sum().backward()
    assert x.grad.isfinite().all()


def test_watch_gives_scalars(norm):
    advance(norm)
    for key, value in norm.watch().items():
        assert value.shape == (), key
        assert value.isfinite(), key


def test_reset_steps_keeps_the_statistics():
    norm = BUILDERS["un"](C)
    advance(norm)
    before = copy_state(norm)
    norm.reset_steps()
    after = norm.state_dict()
    assert after.pop("iters").item() == 0
    for key, value in after.items():
        assert torch.equal(value, before[key]), key


def test_repr_shows_the_settings():
    text = repr(UnifiedNorm(C, window=(2, 8), centering="batch", filtration=True))
    for part in ("window=(2, 8)", "centering=batch", "filtration=True"):
        assert part in text
    assert "compensation" not in text  # official values are not repeated
