"""results/scaling/README.md holds what the scaling benchmark computes; its counts agree with what the norms do."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from un.norms import UnifiedNorm

pytestmark = pytest.mark.usefixtures("find_scripts")
ROOT = Path(__file__).parents[2]
PAGE, TABLES = ROOT / "docs/scaling.md", ROOT / "results/scaling/README.md"
NUM_VALUES = 400 * 32  # of the activations; what has fewer is a weight or a statistic


class TrafficCounter(TorchDispatchMode):
    """Adds up the bytes of activations that operators read and write, each of them once; views cost nothing."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        reads_values = not func.is_view and func is not torch.ops.aten.new_zeros.default
        if reads_values and any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            tensors = {leaf.data_ptr(): leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            written = {leaf.data_ptr(): leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
            self.bytes += sum(one.nbytes for one in (*tensors.values(), *written.values()) if one.numel() >= NUM_VALUES)
        return result


def count_bytes(norm: nn.Module, dtype: torch.dtype) -> int:
    """Returns the bytes per value of x that forward and backward move."""
    x = torch.randn(NUM_VALUES // 32, 32, dtype=dtype, requires_grad=True)
    with TrafficCounter() as counter:
        y = norm.to(dtype)(x)
    grad = torch.ones_like(y)
    with counter:
        y.backward(grad)
    return round(counter.bytes / x.numel())


def test_the_page_is_what_the_benchmark_writes_and_predictions_are_those_done_by_hand() -> None:
    from benchmarks.scaling import MODELS, count_model, predict, render_tables

    workloads = {name: count_model(name) for name in MODELS}
    assert render_tables(list(workloads.values())) in TABLES.read_text(), "run scripts/benchmark.py scaling --update"
    vit = workloads["imagenet_deit_small"]
    assert vit.channels == [384] * 25
    assert vit.values == 128 * 197 * 384 * 25
    assert vit.norm_bytes == 25 * ((2 + 4 + 4) * 384 * 4 + 3 * 8)
    assert vit.parameters == 22_050_664
    # published: 4.6 billion multiply-additions for an image (DeiT)
    assert vit.step * 312e12 * 0.3 == pytest.approx(128 * 3 * 2 * 4.6e9, rel=0.01)
    one = vit._replace(channels=[249], norm_bytes=1000, parameters=250)
    small, large = predict(one, 8), predict(one, 32)
    share = 200e9 * 0.9 / 3.8 / 2
    assert small["sync=true"] == pytest.approx(2 * (4.4e-6 + 2 * 7 * 0.52e-6) + 4 * (250 + 499) / share)
    assert large["sync=true"] == pytest.approx(2 * (4.4e-6 + 2 * (7 * 0.52e-6 * 1.8 + 2 * 5e-6)) + 4 * 749 / share)
    ring = 3.6e-6 + 28 * 0.47e-6 * 1.8 + 3 * 2.7e-6
    assert large["DDP's broadcast"] == pytest.approx(2 * ring + 1000 / 50e9)
    assert small["gradients"] == pytest.approx(2 * 7 / 8 * 1000 / 200e9)


def test_messages_are_those_that_a_norm_sends() -> None:
    from benchmarks.scaling import Workload

    norm, sent = UnifiedNorm(6, sync=True), []
    distributed = mock.Mock(**{"is_initialized.return_value": True, "get_world_size.return_value": 2})
    distributed.all_reduce = lambda packed: sent.append(packed.numel() * packed.element_size())
    with mock.patch("un.norms.core.moments.dist", distributed):
        norm(torch.randn(5, 6, requires_grad=True)).sum().backward()
    assert sent == Workload("", [6], 0, 0, 0, 0).messages


def test_traffic_is_that_of_the_operators() -> None:
    from benchmarks.scaling import TRAFFIC

    kinds = (torch.float32, torch.bfloat16)
    assert [count_bytes(UnifiedNorm(32), kind) for kind in kinds] == [TRAFFIC["UN, eager"], 64]
    assert [count_bytes(nn.LayerNorm(32), kind) for kind in kinds] == [20, 10]
    assert "64 bytes per value, LayerNorm's 10 (in float32 40 and 20)" in " ".join(PAGE.read_text().split())
