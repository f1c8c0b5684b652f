"""Test images under shift: corrupted before normalisation, the same image always in the same way.

Shapes: B batch, C channels, S image size.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from un.datasets import derive_seed
from un.vision.batches import Batch, EpochSampler, MemoryBatches, WorkerBatches

Corruption = Callable[[Tensor], Tensor]  # of an image (C, S, S) on the scale 0 to 1, e.g. one of torchvision's v2
SEED = 0  # ours: of what a corruption draws


class CorruptedBatches:
    """Batches of another source, corrupted; what is drawn for an image depends on its place in the split only."""

    def __init__(
        self,
        source: MemoryBatches | WorkerBatches,
        corruption: Corruption,
        mean: Sequence[float],  # by which the source normalises: per channel, on the scale 0 to 1
        std: Sequence[float],
    ) -> None:
        self.source, self.corruption = source, corruption
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def make_batches(self, sampler: EpochSampler, start: int) -> Iterator[Batch]:
        """Yields the batches of the epoch from number `start` on."""
        places = sampler.list_batches()[start:]
        for (images, labels), numbers in zip(self.source.make_batches(sampler, start), places, strict=True):
            pixels = (images * self.std + self.mean).clamp_(0, 1)
            with isolate_rng(include_cuda=False):
                corrupted = [self._corrupt(*pair) for pair in zip(pixels, numbers.tolist(), strict=True)]
            yield torch.stack(corrupted).sub_(self.mean).div_(self.std), labels

    def _corrupt(self, image: Tensor, number: int) -> Tensor:
        torch.default_generator.manual_seed(derive_seed(SEED, number))
        corrupted = self.corruption(image)
        if not isinstance(corrupted, Tensor) or corrupted.shape != image.shape:
            found = list(corrupted.shape) if isinstance(corrupted, Tensor) else type(corrupted).__name__
            raise ValueError(f"data.corruption makes {found} of an image of shape {list(image.shape)}")
        return corrupted
