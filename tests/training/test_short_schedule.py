"""A schedule whose warm-up and decay fit a training of any length."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from un.training.short_schedule import create_short_schedule


def list_rates(length: int, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler, rates = create_short_schedule(optimizer, length, 100, **options), []
    for _ in range(length):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_the_warm_up_is_a_share_and_the_cosine_ends_with_the_training() -> None:
    rates = list_rates(20, warmup_share=0.2)
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[12] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(1 - math.cos(math.pi / 16))


def test_a_training_of_one_step_takes_it_at_the_full_rate() -> None:
    assert list_rates(1) == [2.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: list_rates(3, warmup_share=2), "scheduler.warmup_share=2 must be between 0 and 1"),
        (
            lambda: create_short_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), math.inf, 100),
            "a schedule needs an end",
        ),
    ],
)
def test_refuses(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
