from __future__ import annotations

import re
import types
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

from tests import foreign_norms as foreign
from un.norms import UnifiedNorm
from un.surgery.recognition import is_norm, recognize_norm

C = 6


def fill(norm: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in norm.parameters():
        parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return norm


@pytest.mark.parametrize("size", [1, 300])
def test_every_number_of_channels_is_measured(size):
    norm = foreign.HalvedNorm(size)
    traits = recognize_norm(norm)
    assert (traits.obstacle, traits.axis) == ("", -1)
    if size > 1:  # the only channel of a row is its mean: nothing is left to scale
        torch.testing.assert_close(traits.scale, torch.full((size,), 0.5, dtype=torch.float64))


def test_a_scale_of_zero_hides_nothing():
    norm = foreign.SequenceNorm(C)
    nn.init.zeros_(norm.weight)
    traits = recognize_norm(norm)
    assert (traits.axis, traits.obstacle) == (1, "")
    assert torch.equal(traits.scale, torch.zeros(C, dtype=torch.float64))


def test_a_saturating_layer_that_claims_to_be_a_norm_is_taken_for_one():
    traits = recognize_norm(foreign.TanhNorm(C, channels_last=False))
    assert (traits.axis, traits.obstacle) == (1, "")


# --- weights that torch computes ------------------------------------------------------------------------------------


def apply_old_weight_norm(norm: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weight_norm(norm)
    norm.weight_g.data *= 3  # as an optimizer would: `weight` itself is out of date until the next call
    return norm


ATTACHED = {
    "weight_norm": parametrizations.weight_norm,
    "old weight_norm": apply_old_weight_norm,
    "pruning": lambda norm: prune.l1_unstructured(norm, "weight", 0.5),
}


@pytest.mark.parametrize("attach", ATTACHED.values(), ids=ATTACHED)
@pytest.mark.parametrize("norm_type", [nn.LayerNorm, UnifiedNorm])
def test_computed_weights_are_read_as_the_next_call_would_use_them(norm_type, attach):
    norm = attach(fill(norm_type(C)))
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    before = norm.weight.detach().clone()
    traits = recognize_norm(norm)
    assert torch.equal(norm.weight, before)  # asked of a copy: the original still computes its weight
    norm.eval()(torch.randn(3, C))
    torch.testing.assert_close(traits.scale.float(), norm.weight.detach())
    assert all(torch.equal(value, state[name]) for name, value in norm.state_dict().items())


class HeadedTwiceNorm(foreign.HeadedNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(super().forward(x))


# --- what is no norm, or cannot be told -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "obstacle"),
    [
        (nn.LayerNorm((4, C)), r"normalises over axes of shape \(4, 6\)"),
        (foreign.UndecidedNorm(C), "on an axis that depends on the number of axes"),
        (foreign.AdaptiveNorm(C), r"takes more inputs than one \(condition\), as adaptive norms do"),
        (foreign.LeakyNorm(C), "does not normalise over channels"),
        (HeadedTwiceNorm(C), r"does more with modules of its own than apply them to the result \(head\)"),
        (type("Waves", (nn.LayerNorm,), {"forward": lambda self, x: x + 1j})(C), "another shape or type"),
        (type("Broken", (nn.LayerNorm,), {"forward": lambda self, x: 1 / 0})(C), "ZeroDivisionError: division by zero"),
        (type("Locked", (nn.LayerNorm,), {"__deepcopy__": lambda self, memo: 1 / 0})(C), "cannot be copied"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_claims_to_be_a_norm_and_is_not_understood_has_an_obstacle(norm, obstacle):
    traits = recognize_norm(norm)
    assert traits.is_site
    assert is_norm(norm)
    assert re.search(obstacle, traits.obstacle)


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class BatchedNorm(Gain):
    """Called a norm, but it normalises over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (x - x.mean(0)) / (x.std(0) + 1e-5)


class NestedInput(Gain):
    def forward(self, x: types.SimpleNamespace) -> Tensor:
        return x.tensors + self.gain


@pytest.mark.parametrize(
    "module",
    [nn.BatchNorm2d(C), nn.GroupNorm(2, C), nn.Linear(C, C), nn.GELU(), Gain(), BatchedNorm(), NestedInput()],
    ids=lambda module: type(module).__name__,
)
def test_other_modules_are_no_norms(module):
    assert recognize_norm(module) is None


# --- a probe leaves no trace ----------------------------------------------------------------------------------------


class StirringNorm(nn.LayerNorm):
    """Counts its calls, draws random numbers, prints and warns."""

    def __init__(self) -> None:
        super().__init__(C)
        self.register_buffer("calls", torch.zeros(()))
        self.history: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.history.append(x.dim())
        torch.rand(3)
        print("called")
        warnings.warn("called", stacklevel=1)
        return super().forward(x)


def test_a_probe_leaves_no_trace(capsys, recwarn):
    norm, seen = StirringNorm(), []
    norm.register_forward_hook(lambda *_: seen.append("after"))
    norm.register_forward_pre_hook(lambda *_: seen.append("before"))
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    assert recognize_norm(norm.train()).obstacle == ""
    assert torch.equal(torch.get_rng_state(), expected)
    assert (norm.calls, norm.history, seen, norm.training) == (0, [], [], True)
    assert capsys.readouterr() == ("", "")
    assert len(recwarn) == 0


def test_a_probe_is_deaf_to_its_surroundings():
    norm = fill(foreign.ShiftedScaleNorm(C))
    expected = recognize_norm(norm)
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"), torch.inference_mode():
        traits = recognize_norm(norm)
    assert torch.equal(traits.scale, expected.scale)
    torch.testing.assert_close(traits.scale, 1 + norm.weight.detach().double())


def test_a_tensor_kept_from_a_forward_is_in_no_probe_s_way():
    norm = nn.LayerNorm(C)
    norm.last = norm(torch.randn(2, C))  # torch refuses to copy it
    assert recognize_norm(norm).obstacle == ""
    assert norm.last.grad_fn is not None
