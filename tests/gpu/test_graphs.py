"""CUDA graphs of evaluation models, folded and not, and of whole training steps with every norm."""

import copy
from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.folding.helpers import randomize
from tests.gpu.helpers import WARM_UP, assert_same_state, forbid_waiting, move, record, relative_difference
from tests.norms.helpers import BUILDERS
from tests.norms.test_compiling import Block, build_evaluated, make_batches
from tests.translation.tiny import draw_sentences, make_batch, make_model, make_unified
from un.folding import fold_norms
from un.norms import UnifiedNorm
from un.surgery import replace_norms
from un.translation.encoder_graph import EncoderGraph

pytestmark = pytest.mark.gpu

C = 8  # channels of the batches of test_compiling
REPLAYS = 9
RATE = 0.1
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}


def make_vit() -> nn.Module:
    """A small ViT with UN, in a random trained state."""
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(**SIZES)
    replace_norms(model, partial(UnifiedNorm, warmup_steps=2, filtration=True))
    return randomize(model)


@pytest.mark.parametrize("is_folded", [False, True])
def test_vit_in_evaluation(is_folded, device) -> None:
    model = make_vit().to(device)
    static = torch.randn(4, 3, 32, 32, device=device)
    if is_folded:
        model = fold_norms(model, (static,), on_unfoldable="raise")[0]
    with torch.inference_mode():
        replay = record(lambda: model(static), device)
        for _ in range(3):
            images = torch.randn_like(static)
            static.copy_(images)
            found = replay().clone()
            assert relative_difference(found, model(images)) <= 1e-6


@pytest.mark.parametrize("is_folded", [False, True])
def test_translation_encoder_in_evaluation(is_folded, device) -> None:
    """The encoder as it is exported; fairseq's own forward asks the GPU whether there is padding."""
    model = randomize(make_model(make_unified, pad_mask=True)).to(device)
    tokens, other = (move(make_batch(draw_sentences(4, seed=seed)), device)["net_input"] for seed in (0, 1))
    if is_folded:
        model, report = fold_norms(model, tokens)
        assert not report.remaining
    encoder, static = EncoderGraph(model).eval(), tokens["src_tokens"].clone()
    with torch.inference_mode():
        replay = record(lambda: encoder(static)[0], device)
        for shift in range(3):
            longest = min(static.shape[1], other["src_tokens"].shape[1])
            static[:, :longest] = other["src_tokens"][:, :longest].roll(shift, 0)
            assert relative_difference(replay(), encoder(static.clone())[0]) <= 1e-6


def make_step(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]):
    """Forward, backward and a step of gradient descent, on tensors that stay where they are."""
    x, mask, weight = batch
    parameters = list(model.parameters())

    def step() -> Tensor:
        loss = (model(x, mask) * weight).mean()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.sub_(gradient, alpha=RATE)
        return loss.detach()

    return step


@pytest.mark.parametrize("name", BUILDERS)
def test_training_steps(name, device) -> None:
    """A recorded step replayed on other batches is the step itself: weights, statistics, windows and counters."""
    torch.manual_seed(0)
    model = Block(BUILDERS[name]).double().train().to(device)
    twin = copy.deepcopy(model)
    batches = move(make_batches(REPLAYS + 1), device)
    static, other = ([tensor.clone() for tensor in batches[0]] for _ in range(2))
    replay, step = record(make_step(model, static), device), make_step(twin, other)
    for _ in range(WARM_UP):
        step()
    assert_same_state(model, twin, 1e-10)
    for batch in batches[1:]:
        for buffers in (static, other):
            for buffer, value in zip(buffers, batch, strict=True):
                buffer.copy_(value)
        with forbid_waiting(device):
            loss = replay()
        assert relative_difference(loss, step()) <= 1e-10
    assert_same_state(model, twin, 1e-10)


@pytest.mark.parametrize("name", ["un", "un_centered", "batchnorm", "powernorm"])
def test_graphs_of_the_compiler_follow_the_statistics(name, device) -> None:
    """Graphs that torch.compile records see statistics that training has moved on since."""
    if device.type == "cpu":
        pytest.skip("the compiler records graphs on a GPU only")
    torch._dynamo.utils.counters.clear()
    model = build_evaluated(name).float().to(device)
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    x, pad_mask, _ = move(make_batches(1)[0], device, torch.float32)
    for scale in (1.0, 2.0, 3.0, 4.0):  # warm-up, recording, two replays
        torch.compiler.cudagraph_mark_step_begin()
        torch.testing.assert_close(compiled(scale * x, pad_mask).clone(), model(scale * x, pad_mask))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.mul_(1.1)
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0
