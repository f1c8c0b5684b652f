"""Schedules in fractions of the training: numbers once its length is known, and part of the state from then on."""

import copy
import re

import pytest
import torch
from torch import nn

from tests.norms.helpers import C, advance, assert_same
from un.norms import ProgressiveRepBatchNorm, UnifiedNorm, set_training_length

FRACTIONAL = {
    "un": lambda c: UnifiedNorm(c, window=2, warmup_fraction=0.5),
    "un_paper": lambda c: UnifiedNorm(c, window=2, warmup_fraction=0.5, smoothing_start="full_window"),
    "prepbn": ProgressiveRepBatchNorm,
}
ABSOLUTE = {
    "un": lambda c: UnifiedNorm(c, window=2, warmup_steps=5),
    "un_paper": lambda c: UnifiedNorm(c, window=2, warmup_steps=5, smoothing_start="full_window"),
    "prepbn": lambda c: ProgressiveRepBatchNorm(c, steps=8),
}
each = pytest.mark.parametrize("name", FRACTIONAL)


def make_told(name: str, steps: int = 10, **options: int) -> nn.Module:
    norm = FRACTIONAL[name](C)
    assert set_training_length(norm, steps, **options) == []
    return norm


def train(norm: nn.Module, calls: int) -> dict:
    """The state after some calls, without UN's place, which absolute numbers do not have."""
    advance(norm, calls)
    return {key: value for key, value in norm.state_dict().items() if key != "warmup"}


@each
def test_a_fraction_is_a_number_of_steps(name) -> None:
    assert_same(train(make_told(name), 12), train(ABSOLUTE[name](C), 12))


@each
def test_a_norm_that_was_not_told_says_so_when_it_trains(name) -> None:
    norm = FRACTIONAL[name](C)
    norm.eval()(torch.randn(2, C))
    with pytest.raises(ValueError, match=re.escape("un.norms.set_training_length(model, steps)")):
        norm.train()(torch.randn(2, C))


@each
def test_the_schedule_is_part_of_the_state(name) -> None:
    """A resumed training goes on as it began, also where it has another length now."""
    norm = make_told(name)
    advance(norm, 3)
    resumed = FRACTIONAL[name](C)
    resumed.load_state_dict(norm.state_dict())
    set_training_length(resumed, 1000)
    twins = (norm, copy.deepcopy(norm), resumed)
    for twin in twins:
        advance(twin, 9, seed=2)
    for twin in twins[1:]:
        assert_same(twin.state_dict(), norm.state_dict())
    norm.reset_parameters()
    assert_same(norm.state_dict(), FRACTIONAL[name](C).state_dict())


def test_a_warm_up_that_begins_anew_takes_the_length_of_the_new_training() -> None:
    norm = make_told("un")
    norm.reset_steps()
    set_training_length(norm, 40)
    assert norm.warmup_steps == norm.warmup == 20


def test_official_checkpoints_load_beside_a_fraction() -> None:
    norm = FRACTIONAL["un"](C)
    norm.load_state_dict(ABSOLUTE["un"](C).state_dict())
    set_training_length(norm, 40)
    assert norm.warmup_steps == 20


@pytest.mark.parametrize(("count", "expected"), [("calls", 15), ("updates", 5)])
def test_accumulated_gradients(count, expected) -> None:
    norm = UnifiedNorm(C, warmup_fraction=0.5, count=count)
    set_training_length(norm, 10, calls=30)
    assert norm.warmup_steps == expected


def test_a_schedule_that_counts_once_in_several_calls() -> None:
    norm = ProgressiveRepBatchNorm(C, calls_per_step=3)
    set_training_length(norm, 10, calls=30)
    assert norm.total_step == norm.iter == 8


def test_a_schedule_that_ends_after_the_training_is_reported() -> None:
    model = nn.ModuleDict({"long": ProgressiveRepBatchNorm(C, steps=11), "fits": ProgressiveRepBatchNorm(C, steps=10)})
    assert set_training_length(model, 10) == ["long"]


BAD = (
    (
        UnifiedNorm,
        {"warmup_steps": 5, "warmup_fraction": 0.5},
        "warmup_steps=5 and warmup_fraction=0.5 exclude each other",
    ),
    (UnifiedNorm, {"warmup_fraction": 1.5}, "warmup_fraction must be between 0 and 1, got 1.5"),
    (UnifiedNorm, {"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
    (UnifiedNorm, {"warmup_steps": 0.5}, "warmup_steps must be a whole number, got 0.5"),
    (ProgressiveRepBatchNorm, {"steps": 5, "fraction": 0.5}, "steps=5 and fraction=0.5 exclude each other"),
    (ProgressiveRepBatchNorm, {"fraction": -0.1}, "fraction must be between 0 and 1, got -0.1"),
    (ProgressiveRepBatchNorm, {"steps": 0}, "steps must be at least 1, got 0"),
)


@pytest.mark.parametrize(("kind", "options", "words"), BAD)
def test_bad_schedules_are_one_clear_line(kind, options, words) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}.*$"):
        kind(C, **options)
