"""`compile_norms`: the norms' own step is compiled, once for all of a kind, and everything else stays as it is."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.compilation import make_unified
from un.norms.core.compilation import compile_norms
from un.surgery import share_pad_mask

C, STEPS, TOLERANCE = 8, 9, 1e-12
BATCHES = torch.randn(STEPS, 4, 6, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(C, C) for _ in range(4))
        self.norms = nn.ModuleList(make_unified(C, filtration=True) for _ in range(4))
        self.wrap = lambda block, x: block(x)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + torch.tanh(self.wrap(norm, layer(x)))
        return x


@pytest.fixture
def pair() -> tuple[Stack, Stack]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    plain = Stack().double().train()
    compiled = copy.deepcopy(plain)
    assert compile_norms(compiled, backend="aot_eager") == 4
    return plain, compiled


def train(model: Stack, x: Tensor) -> list[Tensor]:
    """Returns loss, gradients and buffers after a step."""
    model.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return [loss.detach(), *(g for g in gradients if g is not None), *(b.clone() for b in model.buffers())]


def assert_agree(plain: Stack, compiled: Stack) -> None:
    for x in BATCHES:
        for expected, found in zip(train(plain, x), train(compiled, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def count_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_one_compilation_serves_all_norms(pair: tuple[Stack, Stack]) -> None:
    plain, compiled = pair
    assert_agree(plain, compiled)
    assert count_graphs() == 1
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    compiled.eval()(BATCHES[0])
    train(copy.deepcopy(compiled).train(), BATCHES[0])
    assert count_graphs() == 1, "evaluation or a copy was compiled"


def test_masks_reach_compiled_norms(pair: tuple[Stack, Stack]) -> None:
    pad_mask = torch.arange(6).expand(4, 6) > torch.tensor([[2], [3], [5], [4]])
    with share_pad_mask(pair[0], pad_mask), share_pad_mask(pair[1], pad_mask):
        assert_agree(*pair)
    assert count_graphs() == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_calls_are_exact(pair: tuple[Stack, Stack], reentrant: bool) -> None:
    plain, compiled = pair
    compiled.wrap = lambda block, x: checkpoint(block, x, use_reentrant=reentrant)
    assert_agree(plain, compiled)
    assert count_graphs() == 0


def test_hooks_are_called(pair: tuple[Stack, Stack]) -> None:
    plain, compiled = pair
    seen: list[torch.Size] = []
    handle = compiled.norms[1].register_forward_pre_hook(lambda norm, inputs: seen.append(inputs[0].shape))
    assert_agree(plain, compiled)
    assert seen == [BATCHES[0].shape] * STEPS
    handle.remove()
