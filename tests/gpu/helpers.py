"""What the tests on a GPU share: batches, the ban on waiting for the device, recorded steps."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tests.norms.helpers import ForbidHostReads

WARM_UP = 3  # calls before a graph is recorded, as torch advises


def move(tree: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The tensors on a device, those of floating-point numbers in a type."""

    def move_leaf(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device, dtype if leaf.is_floating_point() else None)

    return tree_map(move_leaf, tree)


def relative_difference(found: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """The largest difference, relative to the largest entry expected, or to `least` if that is more."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    assert found.shape == expected.shape
    if not expected.numel():
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(max(least, 1e-30)))


@contextlib.contextmanager
def forbid_waiting(device: torch.device) -> Iterator[None]:
    """Refuses whatever waits for the GPU; on the CPU, reads by the host."""
    if device.type == "cpu":
        with ForbidHostReads():
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def record(step: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Warms a step up and records it as a CUDA graph; what is returned replays it, and returns what the step did.

    The step reads and writes tensors that stay where they are. On the CPU it is the step itself, warmed up.
    """
    if device.type == "cpu":
        for _ in range(WARM_UP):
            step()
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def assert_same_state(model: nn.Module, expected: nn.Module, tolerance: float) -> None:
    """Compares parameters and buffers, each relative to its largest entry."""
    values = expected.state_dict()
    for name, value in model.state_dict().items():
        assert relative_difference(value, values[name], 1e-3) <= tolerance, name
