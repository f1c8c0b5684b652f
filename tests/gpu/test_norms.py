"""Every norm on a GPU computes what it does on the CPU, in every type, and never waits for the device."""

import copy

import pytest
import torch

from tests.gpu.helpers import forbid_waiting, move, relative_difference
from tests.norms.helpers import BUILDERS, step
from un.norms.core.updates import end_update

pytestmark = pytest.mark.gpu

STEPS, OUTLIER = 12, 7  # training calls, and the one whose input is far larger, so that filtration strikes
# (B, N, C): few rows, and so many that the kernel that sums over them needs several blocks for a column.
SIZES = {"small": (3, 5, 6), "large": (16, 197, 48)}
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
LEAST = 1e-3  # a value that is zero but for rounding is measured by this


@pytest.fixture(params=BUILDERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def draw(size: tuple[int, ...], number: int) -> tuple[torch.Tensor, ...]:
    """Input, upstream gradient and mask of a step, with channels of unlike scales."""
    generator = torch.Generator().manual_seed(number)
    x, grad = torch.randn(2, *size, generator=generator, dtype=torch.float64)
    x = x * torch.linspace(-1, 1, size[-1], dtype=torch.float64).exp() + 0.3
    return (20 if number == OUTLIER else 1) * x, grad, torch.rand(size[:-1], generator=generator) < 0.3


def compare(norm, twin, size, device, dtype, tolerance: float, masked: bool) -> None:
    """Trains a norm on the CPU and its twin on the device, step by step, and compares them in evaluation."""
    for number in range(STEPS):
        x, grad, mask = move(draw(size, number), torch.device("cpu"), dtype)
        mask = mask if masked else None
        expected = step(norm, x, grad, mask)
        found = step(twin, *move((x, grad, mask), device))
        for place, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert (a is None) == (b is None)
            if a is not None:
                assert a.dtype == b.dtype
                assert a.device.type == device.type
                assert relative_difference(a, b, LEAST) <= tolerance, f"step {number}, result {place}"
        for key, value in norm.state_dict().items():
            assert relative_difference(twin.state_dict()[key], value, LEAST) <= tolerance, f"step {number}, {key}"
    found, expected = twin.eval()(move(x, device)), norm.eval()(x)
    assert relative_difference(found, expected) <= tolerance


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_training_agrees_with_the_cpu(name, dtype, size, masked, device) -> None:
    norm = BUILDERS[name](SIZES[size][-1], dtype=dtype)
    compare(norm, copy.deepcopy(norm).to(device), SIZES[size], device, dtype, TOLERANCES[dtype], masked)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_agrees_with_the_cpu(name, dtype, device) -> None:
    """Input and parameters in half precision; statistics stay in float32."""
    norm = BUILDERS[name](48, dtype=dtype)
    compare(norm, copy.deepcopy(norm).to(device), SIZES["large"], device, dtype, TOLERANCES[dtype], masked=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(name, dtype, device) -> None:
    """Under autocast a norm returns its input's type, and its state and gradients are those without."""
    norm, twin = (BUILDERS[name](48).to(device) for _ in range(2))
    for number in range(STEPS):
        x, grad, mask = move(draw(SIZES["large"], number), device, torch.float32)
        for typed in (x, x.to(dtype)):
            with torch.autocast(device.type, dtype):
                assert norm.eval()(typed, mask).dtype == typed.dtype
            norm.train()
            expected = step(twin, typed, grad.to(typed.dtype), mask)
            with torch.autocast(device.type, dtype):
                found = step(norm, typed, grad.to(typed.dtype), mask)
            for a, b in zip(found, expected, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    assert a.dtype == b.dtype
                    assert relative_difference(a, b, LEAST) <= TOLERANCES[typed.dtype]
    for key, value in norm.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64)
        assert relative_difference(value, twin.state_dict()[key], LEAST) <= TOLERANCES[torch.float32]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_no_call_waits_for_the_device(name, masked, dtype, device) -> None:
    norm = BUILDERS[name](6).to(device)
    x, grad, mask = move(draw(SIZES["small"], 0), device, dtype)
    x.requires_grad_()
    for training in (True, True, True, False):
        norm.train(training)
        with forbid_waiting(device):
            norm(x, mask if masked else None).backward(grad)
            end_update(norm)


@pytest.mark.parametrize("name", ["un", "un_centered", "powernorm"], indirect=True)
def test_odd_batches_agree_with_the_cpu(name, device) -> None:
    """No row at all, only padding, and a value that is not a number leave no trace, and do not wait either."""
    norm = BUILDERS[name](6)
    twin = copy.deepcopy(norm).to(device)
    x, grad, mask = move(draw(SIZES["small"], 0), torch.device("cpu"), torch.float32)
    broken = x.clone()
    broken[0, 0, 0] = torch.nan
    for inputs in ((x, grad, None), (x[:0], grad[:0], None), (x, grad, torch.ones_like(mask)), (broken, grad, None)):
        step(norm, *inputs)
        own, upstream, own_mask = move(inputs, device)
        own = own.clone().requires_grad_()
        with forbid_waiting(device):
            twin(own, own_mask).backward(upstream)
        for key, value in norm.state_dict().items():
            assert relative_difference(twin.state_dict()[key], value, LEAST) <= 1e-5, key
