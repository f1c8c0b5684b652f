"""Batches of images: batch i of epoch e depends on (seed, e, i) and the process only.

Shapes: B batch, C channels, S image size.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from un.datasets import derive_seed
from un.vision.sources import ImageSplit
from un.vision.transforms import BatchTransform, ImageTransform

Batch = tuple[Tensor, Tensor]  # images (B, C, S, S) float32, labels (B,) int64
Key = tuple[int, tuple[int, int, int] | None]  # an example, and the numbers that its augmentation depends on


@dataclass(eq=False)
class EpochSampler:
    """Which examples make up the batches of an epoch, for one of `world_size` processes.

    Training: a permutation per epoch, cut into updates of B x accumulation x world_size. Each update is dealt out like
    cards, to the processes of its first batch, then to those of the next: accumulated batches equal those of additional
    processes. The last batch, and so the last update, may be incomplete. Evaluation: every example once, in order, in
    batches of nearly equal size, so that all processes have the same number of batches.
    """

    num_examples: int
    batch_size: int  # B, examples per batch and process
    _: KW_ONLY
    training: bool
    seed: int = 0  # of the permutations
    # Repeated augmentation (arXiv 1902.05509, in the form of DeiT's `RASampler`): each example comes this often in a
    # row, so that its copies are dealt to different batches of an update. The epoch keeps its length, except that a
    # last update with fewer batches than copies is left out.
    num_repeats: int = 1
    augment: bool = True  # prepares training images at random; False: as a test does
    drop_last: bool = True  # leaves out an incomplete last batch, which all processes otherwise share equally
    accumulation: int = 1  # batches per process that make up an update
    rank: int = 0  # of this process
    world_size: int = 1  # number of processes

    def __post_init__(self) -> None:
        self.epoch = 0
        step_size = self.batch_size * self.world_size
        unit = step_size if self.drop_last else self.world_size
        self.num_used = self.num_examples // unit * unit if self.training else self.num_examples
        self.num_batches = math.ceil(self.num_used / step_size)
        incomplete = self.num_batches % self.accumulation
        if self.training and incomplete * self.world_size < self.num_repeats:  # too few batches to deal the copies to
            self.num_batches -= incomplete
            self.num_used = min(self.num_used, self.num_batches * step_size)
        if not 0 < self.num_batches * self.world_size <= self.num_examples:
            raise ValueError(
                f"{self.num_examples} examples are too few for data.batch_size={self.batch_size} on "
                f"{self.world_size} process(es)"
            )

    def set_epoch(self, epoch: int) -> None:
        """Selects the permutation; Lightning calls it before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def list_places(self) -> list[NDArray[np.int64]]:
        """Returns the places in the epoch from which each batch takes its examples, the same in every epoch."""
        places = np.arange(self.num_used)
        if not self.training:
            return np.array_split(places, self.num_batches * self.world_size)[self.rank :: self.world_size]
        step_size = self.batch_size * self.world_size
        batches: list[NDArray[np.int64]] = []
        for start in range(0, self.num_used, step_size * self.accumulation):
            update = places[start : start + step_size * self.accumulation]
            num_dealt = math.ceil(len(update) / step_size) * self.world_size
            batches += [update[first::num_dealt] for first in range(self.rank, num_dealt, self.world_size)]
        return batches

    def list_batches(self) -> list[NDArray[np.int64]]:
        """Returns the indices of each batch of the current epoch."""
        order = np.arange(self.num_examples)
        if self.training:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
            order = np.repeat(order, self.num_repeats)
        return [order[places] for places in self.list_places()]


class MemoryBatches:
    """Batches cut from a split, decoded once, and augmented as a whole, without worker processes."""

    def __init__(self, split: ImageSplit, transform: BatchTransform, mode: str) -> None:
        self.images = split.decode_all(mode)
        self.labels = torch.from_numpy(split.labels)
        self.transform = transform

    def make_batches(self, sampler: EpochSampler, start: int) -> Iterator[Batch]:
        """Yields the batches of the epoch from number `start` on; they draw by (seed, epoch, batch number, rank)."""
        for number, indices in enumerate(sampler.list_batches()[start:], start):
            generator = None
            if sampler.training and sampler.augment:
                seed = derive_seed(sampler.seed, sampler.epoch, number, sampler.rank)
                generator = torch.Generator().manual_seed(seed)
            chosen = torch.from_numpy(indices)
            yield self.transform(self.images[chosen], generator), self.labels[chosen]


class WorkerBatches(Dataset):
    """Batches of images that are decoded and augmented one by one in worker processes.

    An image is augmented by (seed, epoch, place in the epoch) only, whichever process makes it.
    """

    def __init__(self, split: ImageSplit, transform: ImageTransform, mode: str, num_workers: int) -> None:
        self.split, self.transform, self.mode, self.num_workers = split, transform, mode, num_workers

    def make_batches(self, sampler: EpochSampler, start: int) -> DataLoader[tuple[Tensor, int]]:
        """Returns a torch loader over the batches of the epoch from number `start` on."""
        return DataLoader(
            self,
            batch_sampler=list_keys(sampler, start),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise each epoch would draw a number from the global random state
        )

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index, numbers = key
        image, label = self.split.decode(index, self.mode), int(self.split.labels[index])
        if numbers is None:
            return self.transform(image, training=False), label
        with isolate_rng(include_cuda=False):
            seed = derive_seed(*numbers)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
            return self.transform(image, training=True), label


def list_keys(sampler: EpochSampler, start: int) -> Iterator[list[Key]]:
    """Yields the keys of each batch of the epoch from number `start` on."""
    epoch, draws = sampler.epoch, sampler.training and sampler.augment
    for indices, places in zip(sampler.list_batches()[start:], sampler.list_places()[start:], strict=True):
        numbers = [(sampler.seed, epoch, place) if draws else None for place in places.tolist()]
        yield list(zip(indices.tolist(), numbers, strict=True))
