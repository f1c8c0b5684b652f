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

from un.datasets import derive_seed
from un.vision.sources import ImageSplit
from un.vision.transforms import BatchTransform, ImageTransform

Batch = tuple[Tensor, Tensor]  # images (B, C, S, S) float32, labels (B,) int64


class EpochSampler:
    """Which examples make up the batches of an epoch, for one of `world_size` processes.

    Training: a permutation per epoch, cut into updates of B x accumulation x world_size. Each update is dealt out like
    cards, to the processes of its first batch, then to those of the next: accumulated batches are made as those of as
    many more processes would be. The last batch, and so the last update, may be incomplete. Evaluation: every example
    once, in order, in batches of nearly equal size, so that all processes have the same number of batches.

    Args:
        num_examples: Size of the split.
        batch_size: B, examples per batch and process.
        training: Shuffle, repeat and drop as above.
        seed: Seed of the permutations.
        num_repeats: Repeated augmentation (arXiv 1902.05509, in the form of DeiT's `RASampler`): each example comes
            this often in a row, so that its copies are dealt to different batches of an update, at most one for each
            of these. The epoch keeps its length, but for a last update of fewer batches than copies.
        drop_last: Leave out an incomplete last batch; otherwise it is as large as all processes can have it alike.
        accumulation: Batches per process that make up an update.
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
        drop_last: bool = True,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.num_examples, self.batch_size, self.training = num_examples, batch_size, training
        self.seed, self.num_repeats = seed, num_repeats
        self.accumulation, self.rank, self.world_size = accumulation, rank, world_size
        self.epoch = 0
        step_size = batch_size * world_size
        unit = step_size if drop_last else world_size
        self.num_used = num_examples // unit * unit if training else num_examples
        self.num_batches = math.ceil(self.num_used / step_size)
        needed = self.num_batches * world_size
        if training:
            needed = step_size * (math.ceil(num_repeats / world_size) - 1) + unit
            incomplete = self.num_batches % accumulation
            if incomplete * world_size < num_repeats:  # too few batches to deal the copies to
                self.num_batches -= incomplete
                self.num_used = min(self.num_used, self.num_batches * step_size)
        if num_examples < needed:
            raise ValueError(
                f"{num_examples} examples are too few for data.batch_size={batch_size} on {world_size} process(es); "
                f"at least {needed} are needed"
            )

    def set_epoch(self, epoch: int) -> None:
        """Select the permutation; called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def list_places(self) -> list[NDArray[np.int64]]:
        """Return the places in the epoch from which each batch takes its examples, the same in every epoch."""
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
        """Return the indices of each batch of the current epoch."""
        order = np.arange(self.num_examples)
        if self.training:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
            order = np.repeat(order, self.num_repeats)
        return [order[places] for places in self.list_places()]


class BatchSource(Protocol):
    """Makes the batches that a sampler lists, from number `start` on."""

    def make_batches(self, sampler: EpochSampler, start: int) -> Iterable[Batch]: ...


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
        batches, places = self.sampler.list_batches(), self.sampler.list_places()
        for indices, chosen in zip(batches[self.start :], places[self.start :], strict=True):
            yield list(zip(indices.tolist(), chosen.tolist(), strict=True))


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
