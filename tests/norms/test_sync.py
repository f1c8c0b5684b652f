"""`sync=True`: the shards of several processes give what one process gives with the whole batch."""

import numpy as np
import pytest

from tests.norms.sharded import KINDS, STEPS, SYNCED, C, calibrate_shards, run_counted, run_steps
from tests.processes import Processes

CENTERED = ("un_centered", "un_window_centered", "batchnorm", "rbn", "rep_batchnorm", "prepbn")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with Processes(2, tmp_path_factory.mktemp("pair")) as processes:
        yield processes


def check_same(processes, name, **options):
    """Returns the state of one process after its last step, and the collectives of each of the others."""
    whole = run_steps(None, name, processes.count, *options.values())
    parts, collectives = zip(*processes.run(run_counted, name, processes.count, *options.values()), strict=True)
    for step, (expected, *found) in enumerate(zip(whole, *parts, strict=True)):
        for place in ("y", "x"):
            for index, value in enumerate(expected[place]):
                check_close(value, np.concatenate([part[place][index] for part in found]), f"{name} {step} {place}")
        for key, value in expected["parameters"].items():
            check_close(value, sum(part["parameters"][key] for part in found), f"{name} {step} {key}")
        for key, value in expected["buffers"].items():
            check_close(value, found[0]["buffers"][key], f"{name} {step} {key}")
            assert all(np.array_equal(found[0]["buffers"][key], part["buffers"][key]) for part in found), (step, key)
    return whole[-1]["buffers"], collectives


def check_close(expected, found, label):
    scale = max(1, np.abs(expected[np.isfinite(expected)]).max(initial=0))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * scale, err_msg=label)


@pytest.mark.parametrize("name", SYNCED)
def test_two_processes_do_what_one_does(pair, name):
    """In one packed all-reduce forward and one backward; the centered square needs the mean first."""
    last, collectives = check_same(pair, name)
    assert all(np.isfinite(value).all() for value in last.values())
    rejected = next(value for key, value in last.items() if key.endswith("nonfinite_counter"))
    assert rejected == STEPS // len(KINDS) * (1 + (name == "un_pads_included"))  # "non-finite"; "bad padding"
    if name in ("un", "un_paper"):
        assert 0 < last["skip_counter"] < last["iters"]
    (number, size), other = collectives
    assert (number, size) == other
    penalties = name == "rbn"  # the gradient of each is one more value
    assert number == STEPS * ((3 if name in CENTERED else 1 if name.startswith("tapernorm") else 2) + penalties)
    assert size / STEPS <= (4 * C + 2 + penalties if name in CENTERED else 3 * C + 2)


def test_calibration_pools_the_batches_of_all_processes(pair):
    expected = calibrate_shards(None, pair.count)
    for found in pair.run(calibrate_shards, pair.count):
        for name, value in expected.items():
            check_close(value, found[name], name)


@pytest.mark.parametrize("name", ["un", "un_window_centered", "powernorm", "rbn"])
# slow: torch's checkpointing imports its compiler
@pytest.mark.parametrize("checkpointed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_several_calls_before_a_backward(pair, name, checkpointed):
    """Which may repeat the forwards, collectives included, in the same order on all."""
    check_same(pair, name, seed=1, calls=3, checkpointed=checkpointed)


@pytest.mark.slow  # three more processes, whose shards differ more
def test_three_processes(tmp_path):
    with Processes(3, tmp_path) as processes:
        for name in SYNCED:
            check_same(processes, name, seed=1)
