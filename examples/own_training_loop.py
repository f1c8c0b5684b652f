"""Puts Unified Normalization into a timm ViT and trains it in a loop of your own, then folds and exports it.

`python examples/own_training_loop.py [epochs] [folder]`: without Hydra or Lightning, on scikit-learn's digits, a minute
on a CPU. docs/library.md explains the steps.
"""

import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from un.folding import fold_norms, load_folded, save_folded
from un.norms import UnifiedNorm, calibrate, describe_warmup, end_update
from un.surgery import replace_norms

TEST_IMAGES = 360  # of 1,797
BATCH, ACCUMULATED = 32, 2  # images of a batch, and batches of an optimizer step
WARMUP_STEPS = 50  # optimizer steps; officially 4000 of 300,000


def load_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns training images (N, 1, 8, 8), their labels (N,), and the same for the test."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().div(16).sub(0.3).div(0.38).unsqueeze(1)
    labels = torch.from_numpy(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))  # the writers come in blocks
    train, test = order[TEST_IMAGES:], order[:TEST_IMAGES]
    return images[train], labels[train], images[test], labels[test]


def build_model() -> nn.Module:
    """Returns a small ViT of timm's, with LayerNorm."""
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10, "class_token": False}
    pooling = {"global_pool": "avg", "fc_norm": False}
    return timm.create_model("vit_tiny_patch16_224", embed_dim=64, depth=3, num_heads=2, **sizes, **pooling)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Trains with AdamW; gradients of some batches are accumulated for each step."""
    num_steps = epochs * math.ceil(len(images) / (BATCH * ACCUMULATED))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=num_steps, pct_start=0.1)
    model.train()
    for _ in range(epochs):
        for step in torch.randperm(len(images)).split(BATCH * ACCUMULATED):
            for rows in step.split(BATCH):
                loss = F.cross_entropy(model(images[rows]), labels[rows], reduction="sum") / len(step)
                loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            end_update(model)  # the norms count steps, not calls
    print(describe_warmup(model) or "the norms have left their warm-up")


@torch.no_grad()
def measure_accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Returns the percentage of right answers."""
    return 100 * float((model.eval()(images).argmax(1) == labels).float().mean())


def export(model: nn.Module, images: Tensor, path: Path) -> onnxruntime.InferenceSession:
    """Writes an ONNX graph for any number of images, and opens it."""
    axes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(model, (images,), path, input_names=["images"], dynamic_shapes=axes, dynamo=True, verbose=False)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def main(epochs: int, folder: Path) -> None:
    """Does all of it."""
    torch.manual_seed(0)
    images, labels, test_images, test_labels = load_data()
    model = build_model()
    norm = partial(UnifiedNorm, warmup_steps=WARMUP_STEPS, filtration=True, count="updates")
    print(replace_norms(model, norm))
    train(model, images, labels, epochs)
    print(f"accuracy {measure_accuracy(model, test_images, test_labels):.2f} %")

    calibrate(model, images.split(256))  # optional: statistics of the whole training set instead of running ones
    accuracy = measure_accuracy(model, test_images, test_labels)
    print(f"accuracy {accuracy:.2f} % with statistics of the whole training set")

    folded, report = fold_norms(model.eval(), test_images[:4])
    print(report)
    folder.mkdir(parents=True, exist_ok=True)
    save_folded(folder / "folded.ckpt", model, folded)
    restored = load_folded(folder / "folded.ckpt", build_model())  # of the plain class
    print(f"accuracy {measure_accuracy(restored, test_images, test_labels):.2f} % without norms")

    session = export(restored, test_images[:2], folder / "folded.onnx")
    (logits,) = session.run(None, {"images": test_images.numpy()})
    right = np.asarray(logits).argmax(1) == test_labels.numpy()
    print(f"accuracy {100 * right.mean():.2f} % in onnxruntime")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(int(arguments[0]) if arguments else 20, Path(arguments[1] if arguments[1:] else "exports"))
