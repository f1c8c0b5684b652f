"""Whole models under torch's DDP: with `sync=True` shards train as the whole batch does, and uneven inputs end."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.integration.sharded_models import train_translator, train_unevenly, train_vit
from tests.processes import Processes


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with Processes(2, tmp_path_factory.mktemp("pair")) as processes:
        yield processes


def check_same(whole: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    losses = np.mean([part.pop("loss") for part in parts], axis=0)
    np.testing.assert_allclose(losses, whole.pop("loss"), rtol=1e-10)
    for name, value in whole.items():
        # DDP averages, so every process sees gradients of a loss that counts its shard for the whole batch; statistics
        # of gradients are in these units, and what is computed from them is averaged again.
        if name.endswith(("ema_gz", "buffer_gz")):
            value = value * len(parts)
        for part in parts:
            np.testing.assert_allclose(part[name], value, rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("norm", ["un", "batchnorm"])
def test_vit(pair: Processes, norm: str) -> None:
    check_same(train_vit(None, norm, 2), pair.run(train_vit, norm, 2))


@pytest.mark.slow  # three processes import fairseq
def test_translator(pair: Processes) -> None:
    check_same(train_translator(None, 2), pair.run(train_translator, 2))


def test_uneven_inputs_without_sync(pair: Processes) -> None:
    first, second = pair.run(train_unevenly, False, False)
    for name, value in first.items():
        if name.endswith(("weight", "bias", "token", "embed")):
            np.testing.assert_array_equal(value, second[name], err_msg=name)
    assert first["norm.iters"] == 5  # batches of rank 0, whose buffers are everybody's


def test_uneven_inputs_with_sync_end_with_an_error(pair: Processes) -> None:
    goes_on, exhausted = pair.run(train_unevenly, True, True)
    assert "at least one rank that exhausted inputs" in goes_on
    assert exhausted == "Rank 1 exhausted all inputs."
