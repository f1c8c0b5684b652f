"""What is said of losses under shift."""

import math

import pytest
from omegaconf import OmegaConf

from un.command.errors import UserError
from un.finished.shift import check_shifts, compare_shifted, list_explosions, summarise
from un.reports.shift import Losses, ShiftResult


def make_result(losses: list[float]) -> ShiftResult:
    return ShiftResult({"test/acc1": 50.0}, summarise(losses), {}, {}, folded=False)


def test_one_example_dominates_the_mean_and_not_the_median() -> None:
    losses = summarise([1.0, 2.0, 3.0, 1000.0])
    assert losses == Losses(mean=251.5, median=2.5, largest=1000.0, examples=4, exploded=1, not_finite=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_counts_as_worse_than_any_number(bad: float) -> None:
    losses = summarise([1.0, bad, 2.0])
    assert (losses.median, losses.largest) == (2.0, math.inf)
    assert (losses.exploded, losses.not_finite) == (1, 1)
    assert not math.isfinite(losses.mean or 0)
    assert list_explosions({"dark": make_result([1.0, bad, 2.0])}) == [
        "dark: EXPLODES: 1 of 3 examples have a loss over 50 nats, 1 of them not finite"
    ]


def test_two_models_beside_each_other() -> None:
    text = compare_shifted("noise", {"original": make_result([1.0, 2.0]), "norm_free": make_result([1.0, 60.0])})
    lines = {line.split("  ")[0]: line.split()[-3:] for line in text.splitlines()}
    assert lines["median loss"] == ["1.500000", "30.500000", "29.000000"]
    assert text.splitlines()[-1] == "noise, norm_free: EXPLODES: 1 of 2 examples have a loss over 50 nats"
    assert list_explosions({"noise": make_result([1.0, 2.0])}) == []


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ({"tatoeba": {"task": "translation", "data": {"path": "???"}}}, "shift.tatoeba.data.path is missing"),
        ({"mine": {"data": {}}}, "shift.mine must have the keys task and data"),
        ({"mine": 3}, "shift.mine must have the keys task and data"),
    ],
)
def test_mistakes(shift: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_shifts(OmegaConf.create(shift))
