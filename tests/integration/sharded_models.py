"""What the processes of test_models_over_processes.py run: a small model on whole batches, or on shards under DDP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

from un.norms import BatchNorm, UnifiedNorm
from un.surgery import replace_norms

STEPS = 8
NORMS = {"un": partial(UnifiedNorm, warmup_steps=2, filtration=True), "batchnorm": BatchNorm}
UNEVEN = (5, 3)  # batches per process


def build_vit(norm: str, sync: bool) -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=16, depth=2, num_heads=2, drop_path_rate=0.0
    )
    replace_norms(model, partial(NORMS[norm], sync=sync))
    return model.double().train()


def draw_images(step: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(size, 1, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(3, (size,), generator=generator)


def train(model: nn.Module, is_sharded: bool, find_loss: Callable[[nn.Module, int], Tensor]) -> dict[str, Any]:
    """Trains; returns the loss of every step, and gradients of the last, parameters and buffers by name, as arrays."""
    wrapped = DistributedDataParallel(model) if is_sharded else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = find_loss(wrapped, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {
        "loss": losses,
        **{f"gradient of {name}": parameter.grad.numpy() for name, parameter in model.named_parameters()},
        **{name: value.detach().numpy().copy() for name, value in model.state_dict().items()},
    }


def train_vit(rank: int | None, norm: str, count: int) -> dict[str, Any]:
    """Batches of four images per process; the loss is the mean, of which DDP takes the mean."""

    def find_loss(model: nn.Module, step: int) -> Tensor:
        images, labels = draw_images(step, 4 * count)
        share = slice(rank, None, None if rank is None else count)
        return F.cross_entropy(model(images[share]), labels[share])

    return train(build_vit(norm, sync=rank is not None), rank is not None, find_loss)


def train_translator(rank: int | None, count: int) -> dict[str, Any]:
    """Nine sentences per step, of which one process gets five; the loss is the mean over all target tokens."""
    from tests.translation.tiny import draw_sentences, make_batch, make_model

    norm = partial(NORMS["un"], filtration=False, pad_gradient="excluded", sync=rank is not None)
    model = make_model(norm, pad_mask=True).double().train()

    class Loss(nn.Module):
        """DDP sees the forward only of what it wraps."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: dict[str, Any]) -> Tensor:
            logits, _ = self.model(**batch["net_input"])  # kept in float64, which our loss does not
            return F.cross_entropy(
                logits.flatten(0, 1),
                batch["target"].flatten(),
                ignore_index=model.decoder.padding_idx,
                reduction="sum",
            )

    def find_loss(wrapped: nn.Module, step: int) -> Tensor:
        sentences = draw_sentences(9, seed=step)
        tokens = sum(len(sentence) + 1 for sentence in sentences)
        shard = sentences if rank is None else sentences[rank::count]
        return wrapped(make_batch(shard)) / tokens * (1 if rank is None else count)

    return train(Loss(), rank is not None, find_loss)


def train_unevenly(rank: int, sync: bool, throw: bool) -> str | dict[str, Any]:
    """Trains on UNEVEN numbers of batches under `Join`; returns the error's text, or parameters and buffers."""
    model = build_vit("un", sync)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        with Join([wrapped], throw_on_early_termination=throw):
            for step in range(UNEVEN[rank]):
                optimizer.zero_grad()
                images, labels = draw_images(10 * rank + step, 4)
                F.cross_entropy(wrapped(images), labels).backward()
                optimizer.step()
    except RuntimeError as error:
        return str(error)
    finally:
        distributed.barrier()
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}
