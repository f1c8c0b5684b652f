"""Images for Lightning: splits, checks and resumable loaders, from config."""

import logging
import warnings
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

from datasets import DatasetDict

from un.datasets import BatchLoader, ResumableDataModule, require_split
from un.vision.batches import Batch, BatchSource, EpochSampler, MemoryBatches, WorkerBatches
from un.vision.preprocessor import ImagePreprocessor
from un.vision.sources import ImageSplit, generate_source, list_label_names, open_split, read_source
from un.vision.transforms import BatchTransform, ImageTransform

GENERATED_CLASSES = 10  # ours, where nothing declares a number
GENERATED_BATCHES = 2  # ours: generated split size in batches, where `limit` gives none
DEFAULT_TEST_SPLITS = ("test", "validation")  # the first that the data have
NUM_EXAMPLES = 8  # ours: images of an example batch
SPLITS = ("train", "val", "test")
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

    preprocessor_class = ImagePreprocessor
    fixed_arguments = ("num_classes", "num_channels", "transform.mean", "transform.std")

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
        if path is None:
            self.train_split, self.val_split, self.test_split, self.val_size = "train", "val", "test", None
        self.splits: dict[str, ImageSplit] = {}
        self._preprocessor: ImagePreprocessor | None = None
        self._sources: dict[str, BatchSource] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read and check all splits, once; with a preprocessor that was given, splits wait until asked for.

        Images are decoded when their loader is first asked for.
        """
        if self._preprocessor is None:
            source = self._load(*SPLITS)
            self._preprocessor = self._describe_training(source)
            for name in SPLITS:
                self._open(source, name)

    def _load(self, *names: str) -> DatasetDict:
        """Return data that have what these splits are taken from, not checked yet."""
        if self.path is not None:
            return read_source(self.path, *self.columns, [self._list_sources(name) for name in names])
        return self._generate(dict.fromkeys(SPLITS, self.limit or GENERATED_BATCHES * self.batch_size), self.seed)

    def _generate(self, counts: dict[str, int], seed: int) -> DatasetDict:
        shape = (self.num_classes or GENERATED_CLASSES, self.image_size, self.num_channels)
        return generate_source(counts, *shape, *self.columns, seed=seed)

    def _describe_training(self, source: DatasetDict) -> ImagePreprocessor:
        title = "the generated images" if self.path is None else self.path
        names = list_label_names(source[require_split(source, title, self.train_split)], self.columns[1])
        num_classes = self.num_classes or (None if names is None else len(names))
        if num_classes is None:
            raise ValueError(f"column {self.columns[1]!r} of {self.path} declares no classes; set data.num_classes")
        if num_classes < 2:
            raise ValueError(f"{title} has one class only: there is nothing to tell apart")
        return ImagePreprocessor(num_classes, names, *self.transform.statistics)

    @property
    def preprocessor(self) -> ImagePreprocessor:
        """Class names of the training split, or as given, and normalisation."""
        self.setup()
        assert self._preprocessor is not None, "set up"
        return self._preprocessor

    def use_preprocessor(self, preprocessor: ImagePreprocessor) -> None:
        """Number classes as this one from now on; each split is read when it is first asked for.

        Raises:
            ValueError: The transform normalises otherwise.
        """
        trained = preprocessor.mean, preprocessor.std
        if self.transform.statistics != trained:
            mean, std = self.transform.statistics
            raise ValueError(f"data.transform has mean={mean} and std={std}, the model was trained with {trained}")
        self._preprocessor, self.num_classes = preprocessor, preprocessor.num_classes
        self.splits, self._sources = {}, {}

    def open_split(self, name: str) -> ImageSplit:
        """Return `train`, `val` or `test`, checked, with the labels of the model's classes."""
        self.setup()
        if name not in self.splits:
            self._open(self._load(name), name)
        return self.splits[name]

    def _open(self, source: DatasetDict, name: str) -> None:
        """Check a split, and if it was held out of another one, or another out of it, both."""
        if name in self.splits:
            return
        opened = self._read(source, self._list_sources(name))
        if self.val_size is None or name == "test":
            parts = {name: opened}
        else:
            parts = dict(zip(("train", "val"), opened.divide(self.val_size, self.split_seed), strict=True))
        self.splits |= {part: split.draw(self.limit, self.split_seed) for part, split in parts.items()}

    def _list_sources(self, name: str) -> tuple[str, ...]:
        """Return what the data may call the split that this one is taken from; the first that is there counts."""
        if name == "test":
            return DEFAULT_TEST_SPLITS if self.test_split is None else (self.test_split,)
        return (self.val_split if name == "val" and self.val_split is not None else self.train_split,)

    def _read(self, source: DatasetDict, splits: tuple[str, ...]) -> ImageSplit:
        title = "the generated images" if self.path is None else self.path
        split = require_split(source, title, *splits)
        names, preprocessor = list_label_names(source[split], self.columns[1]), self.preprocessor
        known = preprocessor.label_names
        others = names if known is not None and names != known else None  # names that are numbered otherwise
        num_classes = preprocessor.num_classes if others is None else len(others)
        opened = open_split(source, split, *self.columns, num_classes=num_classes, path=title)
        if others is not None:
            return replace(opened, labels=preprocessor.number_labels(opened.labels, others, opened.name))
        if known is not None and names is None:
            log.warning("%s does not name its classes: they are taken to be numbered as the model's", opened.name)
        return opened

    def model_arguments(self) -> dict[str, Any]:
        """Return what the data decide about a model: `num_classes`, `img_size`, `in_chans`."""
        num_classes = self.preprocessor.num_classes
        return {"num_classes": num_classes, "img_size": self.image_size, "in_chans": self.num_channels}

    def make_example_batch(self, seed: int) -> Batch:
        """Return a batch of generated images, as prepared for evaluation."""
        generated = self._generate({"examples": NUM_EXAMPLES}, seed)
        split = open_split(generated, "examples", *self.columns, self.preprocessor.num_classes, "the generated images")
        sampler = EpochSampler(len(split), NUM_EXAMPLES, training=False)
        return next(iter(self._make_source(split, num_workers=0).make_batches(sampler, 0)))

    def make_loader(self, split: str, training: bool) -> BatchLoader:
        """Return a loader of one split."""
        examples = self.open_split(split)
        if split not in self._sources:
            self._sources[split] = self._make_source(examples, self.num_workers)
        sampler = EpochSampler(
            len(examples),
            self.batch_size,
            training=training,
            seed=self.seed,
            num_repeats=self._count_repeats(len(examples)) if training else 1,
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

    def _make_source(self, split: ImageSplit, num_workers: int) -> BatchSource:
        mode = PIL_MODES[self.num_channels]
        if isinstance(self.transform, BatchTransform):
            return MemoryBatches(split, self.transform, mode)
        return WorkerBatches(split, self.transform, mode, num_workers)


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
