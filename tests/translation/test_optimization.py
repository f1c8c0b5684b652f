import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from tests.translation.tiny import make_model
from un.translation.optimization import create_inverse_sqrt_scheduler

CONFIGS = Path(__file__).parents[2] / "configs"


def make_optimizer(*rates):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def follow(optimizer, scheduler, num_updates):
    rates = []
    for _ in range(num_updates):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


def test_rates_are_those_of_the_recipe():
    optimizer = make_optimizer(7e-4, 7e-3)
    scheduler = create_inverse_sqrt_scheduler(optimizer, math.inf, 10, warmup_steps=6, warmup_lr=1e-7)
    rates, others = zip(*follow(optimizer, scheduler, 30), strict=True)
    expected = [1e-7 + u * (7e-4 - 1e-7) / 6 if u < 6 else 7e-4 * math.sqrt(6 / u) for u in range(30)]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert others[0] == pytest.approx(1e-7)  # each group has a rate of its own
    assert others[6:] == pytest.approx([10 * rate for rate in rates[6:]])


@pytest.mark.parametrize(
    ("values", "message"),
    [({"warmup_steps": 0}, "warmup_steps=0 must be at least 1"), ({"warmup_lr": -1}, "warmup_lr=-1")],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        create_inverse_sqrt_scheduler(make_optimizer(1e-2), 100, 10, **values)


def test_the_optimizer_decays_every_parameter():
    model = make_model()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", ["experiment=iwslt14_de_en"])
    optimizer = instantiate(config.optimizer, _convert_="all")(model)
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"], group["eps"]) == (7e-4, 1e-4, (0.9, 0.98), 1e-8)
    assert len(group["params"]) == len(list(model.parameters()))
