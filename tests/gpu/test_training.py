"""Training on a GPU: whole steps that never wait, loss scaling, and processes joined by nccl."""

import math
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tests.gpu.helpers import assert_same_state, forbid_waiting, move, relative_difference
from tests.gpu.test_graphs import make_vit
from tests.norms.helpers import BUILDERS, STATISTICAL, step
from tests.training.test_norm_updates import OVERFLOWS, train_in_half_precision
from tests.training.toy import run_toy
from tests.translation.tiny import draw_sentences, make_batch, make_model, make_unified
from un.norms import UnifiedNorm
from un.surgery import replace_norms
from un.training.callbacks.divergence import DivergenceStop
from un.translation.losses import sum_cross_entropy

pytestmark = pytest.mark.gpu

OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 1e-3),
    "fused": lambda parameters: torch.optim.AdamW(parameters, 1e-3, fused=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_step_of_a_vit_never_waits(optimizer, dtype, device) -> None:
    """Without a GradScaler, which asks the GPU in every step whether gradients overflowed."""
    model = make_vit().to(device).train()
    images, labels = torch.randn(8, 3, 32, 32, device=device), torch.randint(5, (8,), device=device)
    steps = OPTIMIZERS[optimizer](model.parameters())
    is_checked = device.type == "cuda" or optimizer == "sgd"  # AdamW counts its steps on the CPU
    for number in range(6):
        # The first step creates the optimizer's state.
        with forbid_waiting(device) if number and is_checked else torch.enable_grad():
            with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            steps.step()
            steps.zero_grad()
    assert math.isfinite(float(loss))


def test_the_norms_of_a_transformer_never_wait(device, monkeypatch) -> None:
    """What waits in a step is fairseq's encoder, which asks whether there is padding, and the places of the tokens."""
    model = make_model(make_unified, pad_mask=True).to(device).train()
    norms = [module for module in model.modules() if isinstance(module, UnifiedNorm)]
    assert norms
    for norm in norms:
        forward = norm.forward

        def call(*arguments, forward=forward, **options):
            with forbid_waiting(device):
                return forward(*arguments, **options)

        monkeypatch.setattr(norm, "forward", call)
    for seed in range(4):
        loss = sum_cross_entropy(model, move(make_batch(draw_sentences(6, seed=seed)), device), 0.1)
        with forbid_waiting(device):
            loss.backward()
        assert math.isfinite(float(loss))


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflowed_step_leaves_no_trace(fused, device) -> None:
    """Lightning's mixed precision with its GradScaler on the GPU, as `trainer=gpu` trains."""
    (model, scale), (clean, clean_scale) = (
        train_in_half_precision(healthy, fused, device.type) for healthy in (False, True)
    )
    assert clean_scale == scale * 2 ** len(OVERFLOWS)
    assert int(model.norm.iters) == 15 - len(OVERFLOWS)
    expected = clean.state_dict()
    for name, value in model.state_dict().items():
        factor = clean_scale / scale if name.endswith(("ema_gz", "buffer_gz")) else 1
        if not name.endswith("nonfinite_counter"):
            assert relative_difference(value * factor, expected[name]) <= 1e-2, name


def test_the_divergence_stop_never_waits(device) -> None:
    stop = DivergenceStop(every_n_steps=1000)
    for name in ("_first_loss", "_bad_loss", "_bad_step", "_streak"):
        setattr(stop, name, getattr(stop, name).to(device))
    loss = torch.tensor(2.0, device=device)
    with forbid_waiting(device):
        for number in range(3):
            stop._note(loss, number, allowed=0)
    assert float(stop._first_loss) == 2.0


@pytest.fixture
def one_process(device, tmp_path: Path):
    """A process group of this process alone, of nccl on a GPU."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("sync", [False, True])
def test_ddp_of_one_process_trains_as_without(sync, device, one_process) -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
    models = [timm.models.VisionTransformer(**sizes) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        replace_norms(model, partial(UnifiedNorm, warmup_steps=2, filtration=True, sync=sync))
        model.to(device).train()
    wrapped: list[nn.Module] = [models[0], DistributedDataParallel(models[1])]
    optimizers = [torch.optim.SGD(model.parameters(), 0.05) for model in models]
    for _ in range(6):
        images, labels = torch.randn(8, 3, 32, 32, device=device), torch.randint(5, (8,), device=device)
        for model, optimizer in zip(wrapped, optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    assert_same_state(models[1], models[0], 1e-4)


@pytest.mark.parametrize("name", STATISTICAL)
def test_synced_statistics_through_a_collective(name, device, one_process, monkeypatch) -> None:
    """Sums over one process are its own; they are queued, so that nothing waits."""
    synced, plain = (BUILDERS[name](6, sync=sync).to(device) for sync in (True, False))
    for number in range(6):
        x, grad = torch.randn(2, 3, 5, 6, device=device)
        mask = torch.rand(3, 5, device=device) < 0.3 if number % 2 else None
        expected = step(plain, x, grad, mask)
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "get_world_size", lambda *arguments: 2)
            synced.zero_grad()
            own = x.clone().requires_grad_()
            with forbid_waiting(device) if number else torch.enable_grad():  # the first joins the processes
                y = synced(own, mask)
                y.backward(grad)
        assert relative_difference(y, expected[0]) <= 1e-4
        assert relative_difference(own.grad, expected[1]) <= 1e-4
    assert_same_state(synced, plain, 1e-4)


@pytest.mark.parametrize(
    "option", ["trainer.precision=16-mixed", "trainer.precision=bf16-mixed", "trainer.strategy=ddp", "compile=true"]
)
def test_a_run(option, device, tmp_path) -> None:
    """From config to result.json, with checkpoints and a test at the end."""
    if device.type == "cpu" and option == "compile=true":
        pytest.skip("a C++ compiler takes long")
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    try:
        result = run_toy(tmp_path, f"trainer.accelerator={accelerator}", option)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    assert result.status == "finished"
    assert math.isfinite(result.metrics["test/loss"])
    assert bool(result.hardware["gpu"]) == (device.type == "cuda")
