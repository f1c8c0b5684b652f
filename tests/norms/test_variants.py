"""Plain UN and its variant with switches: which of them is built, and that they agree to the bit at the defaults."""

import copy
import math
import pickle
from dataclasses import asdict
from typing import get_args, get_type_hints

import pytest
import torch

from tests.norms.helpers import C, assert_same, step
from un.norms import Switches, UnifiedNorm, UnifiedNormVariant

DEFAULTS = asdict(Switches())
HINTS = get_type_hints(Switches)
FREE = {"compensation_limits": None, "compensation_start": 7, "threshold_factor": 2.0}


def change(name):
    """A value away from the default of a switch: another word, the other flag, or what `FREE` has."""
    if name in FREE:
        return FREE[name]
    return not DEFAULTS[name] if HINTS[name] is bool else get_args(HINTS[name])[1]


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_switch_away_from_its_default_makes_a_variant(name):
    assert type(UnifiedNorm(C, **{name: DEFAULTS[name]})) is UnifiedNorm
    norm = UnifiedNorm(C, window=2, **{name: change(name)})
    assert type(norm) is UnifiedNormVariant
    assert isinstance(norm, UnifiedNorm)
    assert norm.window == (2, 2)
    assert getattr(norm.switches, name) == change(name)


@pytest.mark.parametrize("options", [{}, {"centering": "window"}])
def test_copies_are_of_the_same_class(options):
    norm = UnifiedNorm(C, **options)
    for twin in (copy.deepcopy(norm), copy.copy(norm), pickle.loads(pickle.dumps(norm))):
        assert type(twin) is type(norm)
        assert twin.state_dict().keys() == norm.state_dict().keys()


def test_a_subclass_has_switches_if_it_derives_from_the_variant():
    class Plain(UnifiedNorm):
        pass

    class Switched(UnifiedNormVariant):
        pass

    assert type(Plain(C)) is Plain
    assert type(Switched(C, centering="batch")) is Switched
    with pytest.raises(ValueError, match="Plain must derive from UnifiedNormVariant to have its options"):
        Plain(C, centering="batch")


def draw_batches(steps):
    """Spikes, jumps, padding, and batches that are refused."""
    generator = torch.Generator().manual_seed(0)
    for number in range(steps):
        size = 0 if number == 13 else 3
        x, grad = torch.randn(2, size, 5, C, generator=generator, dtype=torch.float64)
        mask = torch.rand(size, 5, generator=generator) < 0.3 if number % 3 == 1 else None
        if number % 7 == 3:
            x[..., number % C] *= 40
        if number % 11 == 5:
            x *= 12
        if number == 9:
            x[0, 0, 0] = math.nan
        if number == 10:
            grad[0, 0, 0] = math.inf
        if number == 14:
            mask = torch.ones(size, 5, dtype=torch.bool)
        yield x, grad, mask


@pytest.mark.parametrize("start", [0, 995])
@pytest.mark.parametrize(
    "options",
    [
        {"warmup_steps": 6},
        {"warmup_steps": 0, "filtration": True, "momentum": (0.8, 0.9)},
        {"warmup_steps": 2, "window": (2, 5), "filtration": True, "affine": False},
        {"window": 1},
    ],
    ids=str,
)
def test_plain_and_variant_agree_to_the_bit(options, start):
    plain, variant = (kind(C, dtype=torch.float64, **options) for kind in (UnifiedNorm, UnifiedNormVariant))
    for norm in (plain, variant):
        norm.iters.fill_(start)
    for number, (x, grad, mask) in enumerate(draw_batches(30)):
        for a, b in zip(*(step(norm, x, grad, mask) for norm in (plain, variant)), strict=True):
            assert (a is None and b is None) or torch.equal(a.nan_to_num(1e9), b.nan_to_num(1e9)), number
        assert_same(variant.state_dict(), plain.state_dict())
    if options.get("filtration"):
        assert plain.skip_counter > 0
    assert plain.nonfinite_counter == 1
    x = torch.randn(2, C, dtype=torch.float64)
    assert torch.equal(plain.eval()(x), variant.eval()(x))
    assert_same(variant.watch(), plain.watch())
