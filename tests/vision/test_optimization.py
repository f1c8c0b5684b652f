import copy
import math
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from timm.optim import create_optimizer_v2

from un.vision.models import create_model
from un.vision.optimization import create_scheduler, group_for_transfer


def make_optimizer(*rates):
    return torch.optim.SGD([{"params": torch.nn.Parameter(torch.zeros(1)), "lr": rate} for rate in rates])


def list_rates(scheduler, times, group=0):
    """Returns the rate of a group at each time, the present one as it stands for time 0."""
    rates = []
    for time in times:
        if time:
            scheduler.step(time) if scheduler.t_in_epochs else scheduler.step_update(time)
        rates.append(scheduler.optimizer.param_groups[group]["lr"])
    return rates


def decay(start, end, share):
    """A cosine from start to end, after this share of its way."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def test_t2t_vit_schedule():
    """Constant within an epoch, cosine not shifted by the warm-up, ten epochs at the minimum."""
    updates = 2502
    options = {"interval": "epoch", "warmup_epochs": 10, "warmup_lr": 1e-6, "min_lr": 1e-5, "cooldown_epochs": 10}
    scheduler = create_scheduler(make_optimizer(5e-4), 310 * updates, updates, **options)
    warmup = [1e-6 + epoch * (5e-4 - 1e-6) / 10 for epoch in (0, 5, 9)]
    cosine = [decay(5e-4, 1e-5, epoch / 300) for epoch in (10, 150, 299)]
    rates = list_rates(scheduler, [0, 5, 9, 10, 150, 299, 300, 309])
    assert rates == pytest.approx([*warmup, *cosine, 1e-5, 1e-5], rel=1e-12)


@pytest.mark.parametrize(("group", "rate"), [(0, 0.05), (1, 5e-4)])
def test_transfer_schedule_moves_both_groups_to_the_same_minimum(group, rate):
    """Cosine per epoch over 60 epochs to 2e-4."""
    scheduler = create_scheduler(make_optimizer(0.05, 5e-4), 60 * 390, 390, interval="epoch", min_lr=2e-4)
    expected = [decay(rate, 2e-4, epoch / 60) for epoch in (1, 30, 59)]
    assert list_rates(scheduler, [1, 30, 59], group) == pytest.approx(expected, rel=1e-12)


def test_deit_trains_an_epoch_at_the_rate_of_the_one_before():
    """Its loop steps the schedule with the epoch just done: epoch e at f(e - 1), epochs 0 and 1 both at f(0)."""
    options = {"interval": "epoch", "warmup_epochs": 5, "warmup_lr": 1e-6, "min_lr": 1e-5, "lag": 1}
    scheduler = create_scheduler(make_optimizer(1e-3), 300 * 1251, 1251, **options)
    warmup = [1e-6 + epoch * (1e-3 - 1e-6) / 5 for epoch in range(5)]
    cosine = [decay(1e-3, 1e-5, epoch / 300) for epoch in (5, 149, 298)]
    rates = list_rates(scheduler, [0, 1, 2, 3, 4, 5, 6, 150, 299])
    assert rates == pytest.approx([1e-6, *warmup, *cosine], rel=1e-12)
    assert rates[5] == pytest.approx(8.002e-4, rel=1e-9)


def test_swin_makes_an_update_at_the_rate_of_the_one_before():
    """Its loop steps the schedule after update u with u."""
    options = {"warmup_epochs": 20, "warmup_lr": 1e-6, "min_lr": 1e-5, "warmup_prefix": True, "lag": 1}
    scheduler = create_scheduler(make_optimizer(1e-3), 300 * 100, 100, **options)
    slope = (1e-3 - 1e-6) / 2000
    cosine = [decay(1e-3, 1e-5, update / 28000) for update in (0, 1, 27998)]
    expected = [1e-6, 1e-6, 1e-6 + slope, 1e-6 + 1999 * slope, *cosine]
    assert list_rates(scheduler, [0, 1, 2, 2000, 2001, 2002, 29999]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("group", "rate"), [(0, 1.0), (1, 0.1)])
def test_a_lagging_schedule_resumes_from_its_state(group, rate):
    make = partial(create_scheduler, num_updates=10, updates_per_epoch=1, lag=2)
    stopped, resumed = make(make_optimizer(1.0, 0.1)), make(make_optimizer(1.0, 0.1))
    assert list_rates(stopped, [0, 1, 2, 3], group) == pytest.approx([rate] * 3 + [decay(rate, 0, 0.1)], rel=1e-12)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    assert list_rates(resumed, [4, 5, 9], group) == list_rates(stopped, [4, 5, 9], group)


@pytest.mark.parametrize(
    ("options", "times", "expected"),
    [
        ({"warmup_steps": 300}, [0, 150, 300, 1755], [0.0, 0.5, decay(1, 0, 300 / 1755), 0.0]),
        ({"sched": "constant", "warmup_epochs": 1}, [0, 351, 1755], [0.0, 1.0, 1.0]),
    ],
)
def test_schedule_by_step(options, times, expected):
    scheduler = create_scheduler(make_optimizer(1.0), 1755, 351, warmup_lr=0.0, **options)
    assert list_rates(scheduler, times) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize(
    "options", [{"warmup_epochs": 5}, {"warmup_epochs": 5, "warmup_prefix": True, "cooldown_epochs": 9}]
)
def test_training_shorter_than_its_warm_up(interval, options):
    scheduler = create_scheduler(make_optimizer(1.0), 3, 8, interval=interval, **options)
    assert all(math.isfinite(rate) and rate >= 0 for rate in list_rates(scheduler, range(4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": "update"}, "scheduler.interval='update' must be step or epoch"),
        ({"interval": "epoch", "warmup_steps": 3}, "scheduler.warmup_steps=3 needs scheduler.interval=step"),
        ({"lag": -1}, "scheduler.lag=-1 must be at least 0"),
        ({"sched": "cosin"}, "cosin"),
    ],
)
def test_bad_schedules(options, message):
    with pytest.raises(ValueError, match=message):
        create_scheduler(make_optimizer(1.0), 10, 5, **options)


@pytest.fixture
def model():
    return create_model("t2t_vit_7", img_size=32, num_classes=3, depth=1)


def name_groups(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in groups]


def test_transfer_groups_hold_every_trained_parameter_once(model):
    head, body = name_groups(model, group_for_transfer(model, head_lr=0.05, body_lr_factor=0.01))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert head == {"head.weight", "head.bias"}
    assert body == trained - head
    assert {"cls_token", "norm.weight", "norm.bias"} <= body


def test_transfer_rates_and_decay_reach_the_optimizer(model):
    optimizer = create_optimizer_v2(
        model,
        "momentum",
        lr=0.05,
        weight_decay=5e-4,
        param_group_fn=lambda model: group_for_transfer(model, 0.05, 0.01),
    )
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.05, 5e-4), (5e-4, 5e-4)]
    assert not any(group["nesterov"] for group in optimizer.param_groups)
    assert all(group["momentum"] == 0.9 for group in optimizer.param_groups)


def test_official_omissions_freeze_final_norm_and_class_token(model):
    body = OmegaConf.load("configs/optimizer/sgd.yaml").param_group_fn.body
    head, rest = name_groups(model, group_for_transfer(model, 0.05, 0.01, body, freeze_ungrouped=True))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"cls_token", "norm.weight", "norm.bias", "pos_embed"} | {
        name for name in frozen if name.endswith(".w")
    }
    assert head | rest | frozen == {name for name, _ in model.named_parameters()}
