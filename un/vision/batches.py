"""Batches of images: batch i of epoch e depends on (seed, e, i) and the process only.

Shapes: B batch, C channels, S image size.
"""

import math
import random
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from un.loading import derive_seed
from un.vision.sources import ImageSplit
from un.vision.transforms import BatchTransform, ImageTransform

Batch = tuple[Tensor, Tensor]  # images (B, C, S, S) float32, labels (B,) int64


class EpochSampler:
    """Which examples make up the batches of an epoch, for one of `world_size` processes.

    Training: a permutation per epoch, cut into global batches of B x world_size (an incomplete last one is dropped),
    every world_size-th example of which is ours. Evaluation: every example once, in order, in batches of nearly equal
    size, so that all processes have the same number of batches.

    Args:
        num_examples: Size of the split.
        batch_size: B, examples per batch and process.
        training: Shuffle, repeat and drop as above.
        seed: Seed of the permutations.
        num_repeats: Repeated augmentation (arXiv 1902.05509, in the form of timm's `RepeatAugSampler`): each example
            comes this often in a row, so that copies go to different processes; the epoch keeps its length.
        rank: Of this process.
        world_size: Number of processes.

    Raises:
        ValueError: Too few examples for one batch per process.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        *,
        training: bool,
        seed: int = 0,
        num_repeats: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        step_size = batch_size * world_size
        self.num_batches = num_examples // step_size if training else math.ceil(num_examples / step_size)
        needed = step_size if training else self.num_batches * world_size
        if num_examples < needed:
            raise ValueError(
                f"{num_examples} examples are too few for data.batch_size={batch_size} on {world_size} process(es); "
                f"at least {needed} are needed"
            )
        self.num_examples, self.batch_size, self.training = num_examples, batch_size, training
        self.seed, self.num_repeats, self.rank, self.world_size = seed, num_repeats, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Select the permutation; called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def list_batches(self) -> list[NDArray[np.int64]]:
        """Return the indices of each batch of the current epoch."""
        order = np.arange(self.num_examples)
        if not self.training:
            return np.array_split(order, self.num_batches * self.world_size)[self.rank :: self.world_size]
        order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        order = np.repeat(order, self.num_repeats)[: self.num_batches * self.batch_size * self.world_size]
        return list(order.reshape(self.num_batches, -1)[:, self.rank :: self.world_size])


class BatchSource(Protocol):
    """Makes the batches that a sampler lists, from number `start` on."""

    def make_batches(self, sampler: EpochSampler, start: int) -> Iterable[Batch]: ...  # noqa: D102


class MemoryBatches:
    """Batches cut from a decoded split in memory and augmented as a whole, without worker processes.

    Args:
        split: Decoded here, once.
        transform: Takes the batch and a generator (none in evaluation).
        mode: PIL mode that images are converted to.
    """

    def __init__(self, split: ImageSplit, transform: BatchTransform, mode: str) -> None:
        self.images = split.decode_all(mode)
        self.labels = torch.from_numpy(split.labels)
        self.transform = transform

    def make_batches(self, sampler: EpochSampler, start: int) -> Iterator[Batch]:
        """Yield the batches of the epoch; the generator's seed is (seed, epoch, batch number, rank)."""
        for number, indices in enumerate(sampler.list_batches()[start:], start):
            generator = None
            if sampler.training:
                seed = derive_seed(sampler.seed, sampler.epoch, number, sampler.rank)
                generator = torch.Generator().manual_seed(seed)
            chosen = torch.from_numpy(indices)
            yield self.transform(self.images[chosen], generator), self.labels[chosen]


class WorkerBatches:
    """Batches of images that are decoded and augmented one by one in worker processes.

    Args:
        split: Read at each access.
        transform: Takes a PIL image.
        mode: PIL mode that images are converted to.
        num_workers: Worker processes; 0 works in the calling process.
    """

    def __init__(self, split: ImageSplit, transform: ImageTransform, mode: str, num_workers: int) -> None:
        self.split, self.transform, self.mode, self.num_workers = split, transform, mode, num_workers

    def make_batches(self, sampler: EpochSampler, start: int) -> Iterable[Batch]:
        """Return a torch loader over the batches of the epoch."""
        return DataLoader(
            SeededImages(self.split, self.transform, self.mode, sampler),
            batch_sampler=SeededIndices(sampler, start),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise each epoch would draw a number from the global random state
        )


class SeededIndices:
    """Batches of (example, place in the epoch), the place being the same on any number of processes."""

    def __init__(self, sampler: EpochSampler, start: int) -> None:
        self.sampler, self.start = sampler, start

    def __len__(self) -> int:
        return len(self.sampler) - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        stride, rank = self.sampler.world_size, self.sampler.rank
        for number, indices in enumerate(self.sampler.list_batches()[self.start :], self.start):
            first = number * self.sampler.batch_size * stride + rank
            yield [(int(index), first + stride * column) for column, index in enumerate(indices)]


class SeededImages(Dataset):
    """Images whose augmentation depends on (seed, epoch, place in the epoch) only, whichever process makes them."""

    def __init__(self, split: ImageSplit, transform: ImageTransform, mode: str, sampler: EpochSampler) -> None:
        self.split, self.transform, self.mode = split, transform, mode
        self.training, self.seeds = sampler.training, (sampler.seed, sampler.epoch)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        index, place = key
        image = self.split.decode(index, self.mode)
        if not self.training:
            return self.transform(image, training=False), int(self.split.labels[index])
        with isolate_rng(include_cuda=False):
            seed = derive_seed(*self.seeds, place)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
            return self.transform(image, training=True), int(self.split.labels[index])
