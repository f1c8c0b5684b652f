"""`sync=True`: the shards of several processes give what one process gives with the whole batch."""

import numpy as np
import pytest

from tests.norms.sharded import STEPS, SYNCED, C, count_collectives, run_steps
from tests.processes import Processes

FILTERING = ("un", "un_paper", "un_channels", "un_window_8")
CENTERED = ("un_centered", "un_window_centered", "batchnorm", "batchnorm_plain", "rep_batchnorm", "prepbn")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with Processes(2, tmp_path_factory.mktemp("pair")) as processes:
        yield processes


def check_same(processes, name, **options):
    whole = run_steps(None, name, processes.count, *options.values())
    parts = processes.run(run_steps, name, processes.count, *options.values())
    for step, (expected, *found) in enumerate(zip(whole, *parts, strict=True)):
        for place in ("y", "x"):
            for index, value in enumerate(expected[place]):
                check_close(value, np.concatenate([part[place][index] for part in found]), f"{name} {step} {place}")
        for key, value in expected["parameters"].items():
            check_close(value, sum(part["parameters"][key] for part in found), f"{name} {step} {key}")
        for key, value in expected["buffers"].items():
            for part in found:
                check_close(value, part["buffers"][key], f"{name} {step} {key}")
                assert np.array_equal(found[0]["buffers"][key], part["buffers"][key]), (name, step, key)
    return whole


def check_close(expected, found, label):
    scale = max(1, np.abs(expected[np.isfinite(expected)]).max(initial=0))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * scale, err_msg=label)


@pytest.mark.parametrize("name", SYNCED)
def test_two_processes_do_what_one_does(pair, name):
    whole = check_same(pair, name)
    last = whole[-1]["buffers"]
    assert all(np.isfinite(value).all() for value in last.values())
    rejected = next(value for key, value in last.items() if key.endswith("nonfinite_counter"))
    assert rejected == 3 + (name == "un_pads_included") * 3, rejected
    if name in FILTERING:
        assert 0 < last["skip_counter"] < last["iters"]


@pytest.mark.parametrize("name", ["un", "un_window_centered", "batchnorm", "powernorm", "mabn"])
# slow: torch's checkpointing imports its compiler
@pytest.mark.parametrize("checkpointed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_several_calls_before_a_backward(pair, name, checkpointed):
    """Which may repeat the forwards, collectives included, in the same order on all."""
    check_same(pair, name, seed=1, calls=3, checkpointed=checkpointed)


@pytest.mark.parametrize("name", SYNCED)
def test_collectives_are_as_few_as_can_be(pair, name):
    """One packed all-reduce forward and one backward; the centered square needs the mean first."""
    (number, size), other = pair.run(count_collectives, name, 2)
    assert [number, size] == other
    assert number == STEPS * (3 if name in CENTERED else 2)
    assert size / STEPS <= (4 * C + 2 if name in CENTERED else 3 * C + 2)


@pytest.mark.slow  # a grid: every norm with other numbers, and with three processes, whose shards differ more
@pytest.mark.parametrize("count", [2, 3])
def test_grid(count, tmp_path):
    with Processes(count, tmp_path) as processes:
        for seed in range(1, 6):
            for name in SYNCED:
                check_same(processes, name, seed=seed)
