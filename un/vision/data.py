"""Images for Lightning: splits, checks and resumable loaders, from config."""

import logging
import warnings
from functools import partial
from time import perf_counter
from typing import Any

from datasets import DatasetDict

from un.loading import BatchLoader, ResumableDataModule, require_split
from un.vision.batches import BatchSource, EpochSampler, MemoryBatches, WorkerBatches
from un.vision.sources import ImageSplit, count_classes, generate_source, open_split, read_source
from un.vision.transforms import BatchTransform, ImageTransform

GENERATED_CLASSES = 10  # ours, where nothing declares a number
GENERATED_BATCHES = 2  # ours: generated split size in batches, where `limit` gives none
DEFAULT_TEST_SPLITS = ("test", "validation")  # the first that the data have
PIL_MODES = {1: "L", 3: "RGB"}
log = logging.getLogger(__name__)


class ImageDataModule(ResumableDataModule):
    """Train, validation and test images with labels.

    Args:
        path: Hub id, local folder, `sklearn-digits`, or null: generated images of the right shape and class count.
        transform: A `BatchTransform` keeps the images in memory, an `ImageTransform` reads them in worker processes.
        image_size: S, height and width of the model's input.
        num_channels: C, 1 or 3; images are converted.
        batch_size: Per process.
        num_classes: Null takes what the label column declares.
        image_column: Column with the images.
        label_column: Column with the class numbers.
        train_split: Name of the split to train on.
        val_split: Name of the split to validate on; null holds `val_size` out of the training split.
        val_size: Number (int) or fraction (float) of training examples held out, by `split_seed` and stratified.
        test_split: Null takes `test`, or `validation` where there is no `test`.
        limit: At most this many examples per split, drawn by `split_seed`; null is all.
        num_workers: Worker processes of an `ImageTransform`.
        num_repeats: Repeated augmentation, see `EpochSampler`; off, with a warning, where an update has fewer batches.
        drop_last: Training drops an incomplete last batch.
        seed: Of order and augmentation.
        split_seed: Of held-out examples and `limit`; null is `seed`.

    Raises:
        ValueError: Arguments that contradict each other; from `setup`, bad data.
    """

    def __init__(
        self,
        path: str | None,
        transform: BatchTransform | ImageTransform,
        image_size: int,
        num_channels: int,
        batch_size: int,
        num_classes: int | None = None,
        image_column: str = "image",
        label_column: str = "label",
        train_split: str = "train",
        val_split: str | None = None,
        val_size: int | float | None = None,
        test_split: str | None = None,
        limit: int | None = None,
        num_workers: int = 0,
        num_repeats: int = 1,
        drop_last: bool = True,
        seed: int = 0,
        split_seed: int | None = None,
    ) -> None:
        super().__init__()
        at_least_one = {
            "batch_size": batch_size,
            "num_classes": num_classes,
            "num_repeats": num_repeats,
            "limit": limit,
        }
        for name, value in at_least_one.items():
            if value is not None and value < 1:
                raise ValueError(f"data.{name}={value} must be at least 1")
        if split_seed is not None and split_seed < 0:
            raise ValueError(f"data.split_seed={split_seed} must be at least 0")
        if num_channels not in PIL_MODES:
            raise ValueError(f"data.num_channels={num_channels} must be one of {', '.join(map(str, PIL_MODES))}")
        if transform.num_channels != num_channels:
            raise ValueError(
                f"data.num_channels={num_channels}, but data.transform.mean and std are of {transform.num_channels}"
            )
        if (val_split is None) == (val_size is None):
            raise ValueError(f"give one of data.val_split={val_split} and data.val_size={val_size}, the other null")
        if num_workers and isinstance(transform, BatchTransform):
            warnings.warn(f"data.num_workers={num_workers} has no effect: the images are in memory", stacklevel=2)
        self.path, self.transform, self.num_classes = path, transform, num_classes
        self.image_size, self.num_channels, self.batch_size = image_size, num_channels, batch_size
        self.columns = (image_column, label_column)
        self.train_split, self.val_split, self.test_split = train_split, val_split, test_split
        self.val_size, self.limit = val_size, limit
        self.seed, self.split_seed = seed, seed if split_seed is None else split_seed
        self.num_workers, self.num_repeats, self.drop_last = num_workers, num_repeats, drop_last
        self.splits: dict[str, ImageSplit] = {}
        self._sources: dict[str, BatchSource] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read and check all splits, once; images are decoded when their loader is first asked for."""
        if self.splits:
            return
        splits = self._generate() if self.path is None else self._read(self.path)
        self.splits = {name: split.draw(self.limit, self.split_seed) for name, split in splits.items()}

    def _generate(self) -> dict[str, ImageSplit]:
        self.num_classes = self.num_classes or GENERATED_CLASSES
        counts = dict.fromkeys(("train", "val", "test"), self.limit or GENERATED_BATCHES * self.batch_size)
        shape = (self.num_classes, self.image_size, self.num_channels)
        source = generate_source(counts, *shape, *self.columns, seed=self.seed)
        return {name: self._open(source, name, "the generated images") for name in counts}

    def _read(self, path: str) -> dict[str, ImageSplit]:
        test_splits = DEFAULT_TEST_SPLITS if self.test_split is None else (self.test_split,)
        val_splits = [] if self.val_split is None else [(self.val_split,)]
        source = read_source(path, *self.columns, [(self.train_split,), *val_splits, test_splits])
        if self.num_classes is None:
            self.num_classes = count_classes(source, self.train_split, self.columns[1], path)
        if self.num_classes < 2:
            raise ValueError(f"{path} has one class only: there is nothing to tell apart")
        train = self._open(source, self.train_split, path)
        if self.val_split is not None:
            val = self._open(source, self.val_split, path)
        else:
            assert self.val_size is not None, "one of the two is given"
            train, val = train.divide(self.val_size, self.split_seed)
        return {"train": train, "val": val, "test": self._open(source, require_split(source, path, *test_splits), path)}

    def _open(self, source: DatasetDict, split: str, path: str) -> ImageSplit:
        assert self.num_classes is not None, "set before any split is opened"
        return open_split(source, split, *self.columns, num_classes=self.num_classes, path=path)

    def model_arguments(self) -> dict[str, Any]:
        """Return what the data decide about a model: `num_classes`, `img_size`, `in_chans`."""
        self.setup()
        return {"num_classes": self.num_classes, "img_size": self.image_size, "in_chans": self.num_channels}

    def make_loader(self, split: str, training: bool) -> BatchLoader:
        """Return a loader of one split."""
        self.setup()
        if split not in self._sources:
            self._sources[split] = self._make_source(self.splits[split])
        sampler = EpochSampler(
            len(self.splits[split]),
            self.batch_size,
            training=training,
            seed=self.seed,
            num_repeats=self._count_repeats(len(self.splits[split])) if training else 1,
            drop_last=self.drop_last,
            accumulation=self.accumulation,
            rank=self.rank,
            world_size=self.world_size,
        )
        return BatchLoader(sampler, partial(self._sources[split].make_batches, sampler))

    def _count_repeats(self, num_examples: int) -> int:
        """Return how often an example comes in an epoch: once where its copies would meet in one batch."""
        num_batches = min(self.world_size * self.accumulation, num_examples // self.batch_size)
        if self.num_repeats <= max(num_batches, 1):
            return self.num_repeats
        if self.rank == 0:
            log.warning(
                "data.num_repeats=%d is switched off: copies of an image go to different batches of an update, and it "
                "has %d (processes x trainer.accumulate_grad_batches)",
                self.num_repeats,
                num_batches,
            )
        return 1

    def _make_source(self, split: ImageSplit) -> BatchSource:
        mode = PIL_MODES[self.num_channels]
        if isinstance(self.transform, BatchTransform):
            return MemoryBatches(split, self.transform, mode)
        return WorkerBatches(split, self.transform, mode, self.num_workers)


def measure_loader(datamodule: ImageDataModule, num_batches: int) -> float:
    """Return the training images per second that the loader delivers, after one batch that is not timed."""
    loader = datamodule.train_dataloader()
    batches = iter(loader)
    images, _ = next(batches)
    start, num_images, epoch = perf_counter(), 0, 0
    for _ in range(num_batches):
        try:
            images, _ = next(batches)
        except StopIteration:
            epoch += 1
            loader.sampler.set_epoch(epoch)
            batches = iter(loader)
            images, _ = next(batches)
        num_images += len(images)
    return num_images / (perf_counter() - start)
