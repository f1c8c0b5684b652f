"""Compiled training computes what eager training does, gradients and state included."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.compilation import assert_compiled_training_agrees, make_mabn, make_unified
from tests.norms.helpers import BUILDERS, paper_options
from un import norms
from un.norms.core.penalties import sum_penalties

C = 8
STEPS = 20
HALF_TOLERANCE = 0.05  # a few roundings of bfloat16
OUTLIERS = {10: 30.0, 15: 8.0}  # step -> scale of the input, so that filtration strikes
NORMS = {
    "powernorm": partial(norms.PowerNorm, warmup_steps=4, num_groups=2),
    "mabn": make_mabn,
    "batchnorm": norms.BatchNorm,
    "rbn": norms.RegularizedBatchNorm,
    "rep_batchnorm": norms.RepBatchNorm,
    "prepbn": partial(norms.ProgressiveRepBatchNorm, steps=9, layer_norm_steps=2),
    "tapernorm": partial(norms.TaperNorm, start_steps=4, end_steps=12),
    "rmsnorm": norms.RMSNorm,
    "scalenorm": norms.ScaleNorm,
    "dyt": norms.DynamicTanh,
    "derf": norms.DynamicErf,
    "groupnorm": partial(norms.GroupNorm, num_groups=2),
    "un": make_unified,
    "un_filtration": partial(make_unified, filtration=True),
    "un_paper": partial(norms.UnifiedNorm, **paper_options(), filtration=True),
    "un_input_only": partial(make_unified, compensation="input", filtration=True, filtered_running="freeze"),
    "un_by_channel": partial(
        make_unified, filtration=True, filter_decision="channel", filtered_gradient_average="replace"
    ),
    "un_centered": partial(make_unified, centering="batch"),
    "un_window_centered": partial(make_unified, centering="window", pad_moment="included"),
    "un_unpadded": partial(make_unified, pad_gradient="excluded", backward_average="window"),
    "un_official_types": partial(make_unified, statistics_type="input", reject_nonfinite=False),
}
# With `test_two_forwards_before_a_backward`, those that differ in what reaches the backward.
FAST = ("powernorm", "un_window_centered", "rbn")
slow = pytest.mark.slow  # seconds each to compile


class Block(nn.Module):
    """A norm with a mask and parameters on both sides, and one without a mask."""

    def __init__(self, build) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(C, C), nn.Linear(C, C)
        self.masked, self.plain = build(C), build(C)

    def forward(self, x: Tensor, pad_mask: Tensor) -> Tensor:
        x = x + self.after(torch.tanh(self.masked(self.before(x), pad_mask)))
        return self.plain(x)


def test_a_compiled_model_is_calibrated() -> None:
    """Also where it has run in evaluation mode before: compiled norms call no hooks."""
    plain, compiled = (Block(norms.BatchNorm).double().eval() for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    compiled.compile(backend="eager")
    batches = [(x, mask) for x, mask, _ in make_batches(3)]
    compiled(*batches[0])
    for model in (plain, compiled):
        assert norms.calibrate(model, batches, lambda m, batch: m(*batch)) == 2
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value)


def make_batches(steps: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Inputs, masks and what outputs are multiplied with, so that no two steps are alike."""
    random = torch.Generator().manual_seed(0)
    batches = []
    for number in range(steps):
        x, weight = torch.randn(2, 4, 6, C, generator=random, dtype=torch.float64)
        pad_mask = torch.arange(6) >= torch.randint(2, 7, (4, 1), generator=random)
        batches.append((OUTLIERS.get(number, 1.0) * x, pad_mask, weight))
    return batches


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, pad_mask, weight = batch
    loss = (model(x, pad_mask) * weight).mean()
    penalty = sum_penalties(model)
    return loss if penalty is None else loss + penalty


def build_block(name: str) -> Block:
    torch.manual_seed(0)
    torch.compiler.reset()
    return Block(NORMS[name]).double().train()


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=slow) for name in NORMS])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=slow)])
def test_training_agrees(name: str, backend: str) -> None:
    model = build_block(name)
    assert_compiled_training_agrees(model, make_batches(STEPS), compute_loss, backend)
    if "filtration" in name:
        assert model.masked.skip_counter > 0


def test_every_norm_is_here() -> None:
    """Those of `BUILDERS`, but for the variants, which are others here."""
    assert NORMS.keys() >= {name for name in BUILDERS if "_" not in name or name == "rep_batchnorm"}


@slow
def test_half_precision_agrees() -> None:
    """bfloat16 autocast around float32 parameters, as Lightning trains; state stays float32."""

    def compute(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, pad_mask, weight = batch
        with torch.autocast("cpu", torch.bfloat16):
            return (model(x.float(), pad_mask) * weight).mean()

    model = build_block("un").float()
    compiled = assert_compiled_training_agrees(model, make_batches(9), compute, "aot_eager", HALF_TOLERANCE)
    assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in compiled.buffers())


def test_two_forwards_before_a_backward() -> None:
    """Each backward uses the step of its own forward; an in-place operation follows the norms."""

    def compute(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, pad_mask, weight = batch
        first, second = model(x, pad_mask).mul_(2).relu_(), model(x.flip(0), pad_mask)
        return (first * weight).mean() + (second * weight.square()).mean()

    model = build_block("un_filtration")
    model.masked = NORMS["un"](C).double()
    assert_compiled_training_agrees(model, make_batches(12), compute, "aot_eager")
    assert model.plain.skip_counter > 0


def build_evaluated(name: str) -> Block:
    """In evaluation mode, with the state of a short training."""
    model = build_block(name)
    for batch in make_batches(3):
        compute_loss(model, batch).backward()
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["un_centered", "powernorm", "prepbn"])
def test_the_evaluation_model_is_exported(name: str) -> None:
    """Unfolded, at any batch size, with and without a mask; the graph changes no buffer."""
    model = build_evaluated(name)
    x, pad_mask, _ = make_batches(1)[0]
    rows = torch.export.Dim("rows")
    program = torch.export.export(model, (x, pad_mask), dynamic_shapes=({0: rows}, {0: rows}), strict=False)
    assert not program.graph_signature.buffers_to_mutate
    for part in (x[:3], torch.cat([x, x.sin()])):
        mask = torch.zeros(part.shape[:2], dtype=torch.bool)
        torch.testing.assert_close(program.module()(part, mask), model(part, mask), rtol=1e-12, atol=1e-12)
