"""What the tests of folding share: norms in a random trained state, and the comparison of outputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from un.folding import FoldReport, fold_norms
from un.norms import (
    BatchNorm,
    MovingAverageBatchNorm,
    PowerNorm,
    ProgressiveRepBatchNorm,
    RepBatchNorm,
    TaperNorm,
    UnifiedNorm,
)

C = 8  # channels of the small models
TOKENS = (3, 5, C)
NORM_KEYS = ("running", "ema_gz", "buffer_", "iters", "eta")


def make_tapered(num_features: int, **options) -> TaperNorm:
    """A TaperNorm at the end of its taper."""
    norm = TaperNorm(num_features, start_steps=0, end_steps=0, **options)
    norm.iters.fill_(1)
    return norm


OFFLINE = {
    "un": UnifiedNorm,
    "batchnorm": BatchNorm,
    "mabn": MovingAverageBatchNorm,
    "pn_v": partial(UnifiedNorm, window=1),
    "powernorm": partial(PowerNorm, group_scaling=False),
    "rep_batchnorm": RepBatchNorm,
    "tapernorm": make_tapered,
    "prepbn": ProgressiveRepBatchNorm,
}


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives vectors and statistics values as after training: signs of both kinds, biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            away = torch.sign(draw(parameter)) if parameter.numel() > 1 and "weight" in name else 0.0
            parameter.data.copy_(0.2 * draw(parameter) + away)
        elif not bool(parameter.any()):
            parameter.data.copy_(0.02 * draw(parameter))
    for name, buffer in model.named_buffers():
        if "running_var" in name or "running_phi" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        elif "running_mean" in name:
            buffer.copy_(draw(buffer))
    return model.eval()


def relative_difference(expected: Tensor, actual: Tensor) -> float:
    return float((expected - actual).abs().max() / expected.abs().max())


def check_fold(model: nn.Module, inputs: tuple, check_inputs: tuple | None = None, **options: object):
    """Folds in float64 and compares on other inputs than the fold saw, in float64 and cast to float32."""
    other = check_inputs or tuple(x.flip(0) + 0.1 * torch.ones_like(x) if x.is_floating_point() else x for x in inputs)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded, report = fold_norms(model.double(), tuple(cast(inputs, torch.float64)), **options)
    assert not folded.training
    assert {parameter.dtype for parameter in folded.parameters()} <= {torch.float64}
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        typed = cast(other, dtype)
        with torch.no_grad():
            expected, actual = model.to(dtype)(*typed), copy.deepcopy(folded).to(dtype)(*typed)
        assert float(expected.std()) > 0
        assert relative_difference(expected, actual) < tolerance, str(report)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name].to(value.dtype)), f"{name} of the model itself was changed"
    return folded, report


def cast(inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [x.to(dtype) if x.is_floating_point() else x for x in inputs]


def outcomes(report: FoldReport) -> dict[str, str]:
    return {row.site: row.outcome for row in report.rows}


def rules(report: FoldReport) -> dict[str, str]:
    return {row.site: row.rule for row in report.rows}


def list_norm_keys(folded: nn.Module, report: FoldReport) -> list[str]:
    """Keys of the folded state dict that belong to a norm."""
    sites = [f"{row.site}." for row in report.rows]
    return [
        key for key in folded.state_dict() if any(map(key.startswith, sites)) or key.rpartition(".")[2] in NORM_KEYS
    ]


class Model(nn.Module):
    """Modules by name and a forward written in the test."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = forward

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self, *inputs)


def make_model(forward, **modules: nn.Module) -> Model:
    return randomize(Model(forward, **modules))


def make_tokens(*shape: int) -> tuple[Tensor]:
    return (torch.randn(*(shape or TOKENS), generator=torch.Generator().manual_seed(5)),)


def linear(bias: bool = True, out: int = C) -> nn.Linear:
    return nn.Linear(C, out, bias=bias)


class Scale(nn.Module):
    """A LayerScale along the axis that `shape` tells."""

    def __init__(self, shape: tuple[int, ...] = (-1,)) -> None:
        super().__init__()
        self.gamma, self.shape = nn.Parameter(torch.ones(C)), shape

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.view(self.shape)
