"""Random erasing after mixing. Black images stay black however they are mixed: what is not black is noise."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from un.vision.module import ImageClassification
from un.vision.transforms import ImageTransform

MIXING = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 1.0, "switch_prob": 0.5, "mode": "batch"}
ERASING = {"probability": 0.25, "mode": "pixel", "max_count": 1}
BATCH, SIZE, NUM_BATCHES = 32, 32, 60
MEAN_AREA = (0.02 + 1 / 3) / 2  # timm draws the erased area evenly between these shares


class Recorder(nn.Module):
    """Keeps the images it is shown."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 3)
        self.seen = []

    def forward(self, images):
        self.seen.append(images.clone())
        return self.head(images.mean((1, 2, 3))[:, None])


def show(**options):
    """Returns what a model sees of black images in training."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    model = Recorder()
    module = ImageClassification(model, lambda model: None, **options)
    module.log = lambda *arguments, **options: None
    module._trainer = SimpleNamespace(optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])])
    for _ in range(NUM_BATCHES):
        module.training_step((torch.zeros(BATCH, 3, SIZE, SIZE), torch.arange(BATCH) % 3), 0)
    return torch.cat(model.seen)


def measure(images):
    """Returns the shares of images and of pixels with noise, and its root mean square."""
    noisy = (images != 0).any(1)
    strength = images[(images != 0)].square().mean().sqrt()
    return noisy.flatten(1).any(1).float().mean().item(), noisy.float().mean().item(), strength.item()


def test_a_mixed_image_is_erased_as_often_and_as_much_as_asked():
    images, pixels, strength = measure(show(mixup=MIXING, random_erasing=ERASING))
    assert images == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / (BATCH * NUM_BATCHES)) ** 0.5)
    assert pixels == pytest.approx(0.25 * MEAN_AREA, rel=0.15)
    assert strength == pytest.approx(1.0, abs=0.01)


def test_without_mixing_the_images_are_erased_too():
    images, _, strength = measure(show(random_erasing=ERASING | {"probability": 1.0}))
    assert (images, strength) == (1.0, pytest.approx(1.0, abs=0.01))


def test_a_transform_leaves_erasing_to_the_task_when_told():
    def list_steps(**options):
        transform = ImageTransform(16, re_prob=0.25, re_mode="pixel", re_count=1, **options)
        return [type(step).__name__ for step in transform.train.transforms]

    assert list_steps() == [*list_steps(re_after_mixing=True), "RandomErasing"]
