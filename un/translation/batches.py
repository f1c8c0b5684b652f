"""Batches of sentences of similar length: batch i of epoch e depends on (seed, e, i) and the process only."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from un.translation.fairseq_library import LanguagePairDataset, data_utils

Batch = dict[str, Any]  # of `LanguagePairDataset.collater`
GroupBy = Literal["lengths", "source_length", "nothing"]
GROUPINGS: tuple[GroupBy, ...] = get_args(GroupBy)


class TokenSampler:
    """Decides which sentence pairs make up the batches of an epoch, for one of `world_size` processes.

    Pairs are sorted by the length of the source, then of the target, and cut where the next one would make a batch
    too large. In training, pairs of equal lengths change places from epoch to epoch, the batches come in random order,
    and those that the processes cannot share evenly are left out. In evaluation, every pair comes once, the shortest
    first; where the processes cannot share the batches evenly, the largest are halved.

    `group_by` is for experiments with more padding in the training batches: pairs are then sorted by the length of the
    source alone, or not at all. Their cut depends on who stands beside whom, so these batches are the same in every
    epoch, in another order; otherwise epochs would differ in length.

    Args:
        sizes: Tokens of source and target, (N, 2).
        indices: Numbers of the pairs to take.
        max_tokens: Maximum number of tokens of a batch, padding included, on the longer side.
        batch_size: Maximum number of pairs of a batch; null sets no limit.
        training: Selects one of the two behaviours above.
        seed: Decides the order in training.
        multiple: Batches have fewer pairs than this, or a multiple of it; the last may have any number.
        group_by: What the pairs of a training batch have in common; fairseq's is `lengths`.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        ValueError: There are too few batches (training) or pairs (evaluation) for the processes.
    """

    def __init__(
        self,
        sizes: NDArray[np.int64],
        indices: NDArray[np.int64],
        max_tokens: int,
        batch_size: int | None = None,
        *,
        training: bool,
        seed: int = 0,
        multiple: int = 1,
        group_by: GroupBy = "lengths",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.indices, self.training, self.seed = indices, training, seed
        self.group_by: GroupBy = group_by if training else "lengths"
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._lengths = sizes[indices].T
        drawn = np.random.default_rng(seed).permutation(len(indices))
        self._order = self._sort(drawn if training and group_by != "lengths" else np.arange(len(indices)))
        longer = self._lengths.max(axis=0)[self._order]
        counts = cut(longer, max_tokens, batch_size, multiple)
        if not training:
            counts = spread(counts, world_size)
        self._ends = np.cumsum(counts)[:-1]
        self.num_batches = len(counts) // world_size
        if not self.num_batches:
            raise ValueError(
                f"{len(indices)} sentence pairs in {len(counts)} batches are too few for {world_size} processes; "
                f"lower data.max_tokens={max_tokens}"
            )

    def set_epoch(self, epoch: int) -> None:
        """Selects the order; called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def list_batches(self) -> list[NDArray[np.int64]]:
        """Returns the numbers of the pairs in each batch of the current epoch."""
        if not self.training:
            return np.split(self.indices[self._order], self._ends)[self.rank :: self.world_size]
        random = np.random.default_rng((self.seed, self.epoch))
        ties = random.permutation(len(self.indices))
        order = self._sort(ties) if self.group_by == "lengths" else self._order
        batches = np.split(self.indices[order], self._ends)
        shuffled = random.permutation(len(batches))[: self.num_batches * self.world_size]
        return [batches[number] for number in shuffled[self.rank :: self.world_size]]

    def _sort(self, ties: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sorts by what `group_by` says and then `ties`; both lengths come out the same for any ties."""
        source, target = self._lengths
        keys = {"lengths": (target, source), "source_length": (source,), "nothing": ()}[self.group_by]
        return np.lexsort((ties, *keys))


def cut(lengths: NDArray[np.int64], max_tokens: int, batch_size: int | None, multiple: int) -> list[int]:
    """Returns the sizes of the batches into which fairseq cuts sentences of these lengths, with none left out."""
    counts: list[int] = []
    while (start := sum(counts)) < len(lengths):
        # With a multiple fairseq forgets the last batch if it is of another size; that one is cut by itself then.
        batches = data_utils.batch_by_size(
            np.arange(len(lengths) - start),
            num_tokens_fn=None,
            num_tokens_vec=lengths[start:].astype(np.int64),
            max_tokens=max_tokens,
            max_sentences=batch_size,
            required_batch_size_multiple=multiple,
        )
        counts += [len(batch) for batch in batches]
        multiple = 1
    return counts


def spread(counts: Sequence[int], world_size: int) -> list[int]:
    """Halves the largest batches until every process gets the same number of them."""
    counts = list(counts)
    while len(counts) % world_size:
        largest = int(np.argmax(counts))
        half = counts[largest] // 2
        if not half:
            raise ValueError(f"{sum(counts)} sentence pairs cannot be shared evenly by {world_size} processes")
        counts[largest : largest + 1] = [counts[largest] - half, half]
    return counts


def load_batches(
    dataset: LanguagePairDataset, sampler: TokenSampler, num_workers: int, start: int
) -> DataLoader[Batch]:
    """Returns a torch loader over the batches of the sampler's epoch, from number `start` on."""
    return DataLoader(
        dataset,
        batch_sampler=[batch.tolist() for batch in sampler.list_batches()[start:]],
        collate_fn=dataset.collater,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise each epoch would draw a number from the global random state
    )
