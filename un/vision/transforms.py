"""Image transforms: whole batches of small images as tensors, or single large images through timm.

Shapes: B batch, C channels, H and W stored size, S model input size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor
from torchvision.transforms.v2 import functional

BYTE_RANGE = 255


class BatchTransform:
    """Resizes, crops the zero-padded image at random, flips and normalises; one draw per image of the batch.

    Data with this transform are decoded once and kept in memory.
    """

    def __init__(
        self,
        mean: Sequence[float],  # per channel, on the scale 0 to 1
        std: Sequence[float],
        image_size: int | None = None,  # S; None keeps the stored size
        crop_padding: int = 0,  # pixels of zeros on each side before the random crop back to S x S; 0 is off
        flip: float = 0.0,  # probability of a horizontal flip
    ) -> None:
        self.num_channels, self.statistics = check_statistics(mean, std), (tuple(mean), tuple(std))
        if crop_padding < 0 or not 0 <= flip <= 1:
            raise ValueError(f"crop_padding={crop_padding} must be at least 0 and flip={flip} between 0 and 1")
        self.mean = torch.tensor(mean).mul(BYTE_RANGE)[:, None, None]
        self.std = torch.tensor(std).mul(BYTE_RANGE)[:, None, None]
        self.image_size, self.crop_padding, self.flip = image_size, crop_padding, flip

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Turns uint8 (B, C, H, W) into normalised float32 (B, C, S, S); without a generator nothing is random."""
        size = self.image_size
        if size is not None and images.shape[-2:] != (size, size):
            images = functional.resize(images, [size, size], antialias=True)
        if generator is not None and self.crop_padding:
            images = crop_at_random(images, self.crop_padding, generator)
        if generator is not None and self.flip:
            flipped = torch.rand(len(images), generator=generator) < self.flip
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        return images.float().sub_(self.mean).div_(self.std)

    def prepare(self, image: Image.Image) -> Tensor:
        """Turns one image into what evaluation makes of it, float32 (C, S, S)."""
        pixels = torch.from_numpy(np.atleast_3d(np.asarray(image)).copy())
        return self(pixels.permute(2, 0, 1)[None])[0]


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> int:
    """Returns the number of channels; each has a mean and a positive standard deviation."""
    if not mean or len(mean) != len(std) or not all(value > 0 for value in std):
        raise ValueError(f"mean={list(mean)} and std={list(std)} must have a value per channel, std above 0")
    return len(mean)


def crop_at_random(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Cuts (B, C, H, W) out of the zero-padded images at one of (2 padding + 1)^2 places, drawn for each image."""
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, [padding] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, places, places, H, W)
    rows, columns = torch.randint(2 * padding + 1, (2, len(images)), generator=generator)
    return windows[torch.arange(len(images)), :, rows, columns]


class ImageTransform:
    """timm's training and evaluation transforms of one image, for sets too large to keep in memory."""

    def __init__(
        self,
        image_size: int = 224,  # S
        crop_pct: float = 0.875,  # evaluation resizes the shorter side to floor(S / crop_pct), then crops the centre
        interpolation: str = "bicubic",  # of the evaluation resize
        train_interpolation: str = "bicubic",  # of crop and RandAugment; `random` is bilinear or bicubic by chance
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,  # per channel, on the scale 0 to 1
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        re_after_mixing: bool = False,  # leaves random erasing (`re_prob` and so on) to `task.random_erasing`
        **augmentation: Any,  # of `timm.data.create_transform`, for training only
    ) -> None:
        self.num_channels, self.statistics = check_statistics(mean, std), (tuple(mean), tuple(std))
        common: dict[str, Any] = {"input_size": image_size, "mean": tuple(mean), "std": tuple(std)}
        if re_after_mixing:
            augmentation["re_prob"] = 0.0
        self.train = create_transform(is_training=True, interpolation=train_interpolation, **common, **augmentation)
        self.evaluate = create_transform(interpolation=interpolation, crop_pct=crop_pct, **common)

    def __call__(self, image: Image.Image, training: bool) -> Tensor:
        """Turns one image into normalised float32 (C, S, S); training draws from the global random states."""
        return self.train(image) if training else self.evaluate(image)

    def prepare(self, image: Image.Image) -> Tensor:
        """Turns one image into what evaluation makes of it, float32 (C, S, S)."""
        return self(image, training=False)
