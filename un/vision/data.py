"""Images for Lightning: splits, checks and resumable loaders, from config."""

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from datasets import DatasetDict

from un.datasets import BatchLoader, ResumableDataModule, find_split, require_split
from un.vision.batches import Batch, EpochSampler, MemoryBatches, WorkerBatches
from un.vision.corruption import CorruptedBatches, Corruption
from un.vision.prediction import ImagePrediction
from un.vision.preprocessor import ImagePreprocessor
from un.vision.sources import ImageSplit, generate_source, list_label_names, open_split, read_source
from un.vision.transforms import BatchTransform, ImageTransform

GENERATED = "the generated images"  # what messages call them
GENERATED_CLASSES = 10  # ours, where nothing declares a number
GENERATED_BATCHES = 2  # ours: generated split size in batches, where `limit` gives none
DEFAULT_TEST_SPLITS = ("test", "validation")  # the first that the data have
NUM_EXAMPLES = 8  # ours: images of an example batch
SPLITS = ("train", "val", "test")
LEAST = {"batch_size": 1, "num_classes": 1, "num_repeats": 1, "limit": 1, "split_seed": 0}  # values of arguments
PIL_MODES = {1: "L", 3: "RGB"}
log = logging.getLogger(__name__)


@dataclass(eq=False)
class ImageDataModule(ResumableDataModule):
    """Train, validation and test images with labels, in batches."""

    path: str | None  # hub id, local folder, `sklearn-digits`, or None: generated images of the right shape and classes
    transform: BatchTransform | ImageTransform  # keeps the images in memory, or reads them in worker processes
    image_size: int  # S, height and width of the model's input
    num_channels: int  # C, 1 or 3; images are converted
    batch_size: int  # per process
    num_classes: int | None = None  # None takes what the label column declares
    image_column: str = "image"
    label_column: str = "label"
    train_split: str = "train"
    val_split: str | None = None  # None, or one that the data lack, holds `val_size` out of the training split
    val_size: int | float | None = None  # number (int) or fraction (float), drawn by `split_seed` and stratified
    test_split: str | None = None  # None takes `test`, or `validation` where there is no `test`
    limit: int | None = None  # at most this many examples per split, drawn by `split_seed`; None is all
    num_workers: int = 0  # processes of an `ImageTransform`
    num_repeats: int = 1  # repeated augmentation, see `EpochSampler`; off where an update has fewer batches
    augment: bool = True  # training images are drawn by the transform; False: prepared as for a test, each once
    drop_last: bool = True  # training drops an incomplete last batch
    seed: int = 0  # of order and augmentation
    split_seed: int | None = None  # of held-out examples and `limit`; None is `seed`
    corruption: Corruption | None = None  # of test images (C, S, S) on the scale 0 to 1, before normalisation

    preprocessor_class = ImagePreprocessor
    fixed_arguments = ("num_classes", "num_channels", "transform.mean", "transform.std")

    def __post_init__(self) -> None:
        super().__init__()
        self._check_arguments()
        self.title = GENERATED if self.path is None else self.path
        self.columns = (self.image_column, self.label_column)
        self.draw_seed = self.seed if self.split_seed is None else self.split_seed
        # The names that each split may have in the data; the first that exists counts.
        self.split_names: dict[str, tuple[str, ...]] = {
            "train": (self.train_split,),
            "val": (self.train_split if self.val_split is None else self.val_split,),
            "test": DEFAULT_TEST_SPLITS if self.test_split is None else (self.test_split,),
        }
        if self.path is None:
            self.split_names, self.val_size = {name: (name,) for name in SPLITS}, None
        self.splits: dict[str, ImageSplit] = {}
        self._preprocessor: ImagePreprocessor | None = None
        self._sources: dict[str, MemoryBatches | WorkerBatches | CorruptedBatches] = {}

    def _check_arguments(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"data.{name}={value} must be at least {least}")
        if self.num_channels not in PIL_MODES:
            raise ValueError(f"data.num_channels={self.num_channels} must be one of {', '.join(map(str, PIL_MODES))}")
        if self.transform.num_channels != self.num_channels:
            wrong = self.transform.num_channels
            raise ValueError(f"data.num_channels={self.num_channels}, but data.transform.mean and std are of {wrong}")
        if self.val_split is None and self.val_size is None:
            raise ValueError("data.val_split and data.val_size are both null: give one of them")

    def setup(self, stage: str | None = None) -> None:
        """Reads and checks all splits, once; with a preprocessor that was given, each when it is first asked for.

        Images are decoded when their loader is first asked for.
        """
        if self._preprocessor is None:
            source = self._load(*SPLITS)
            self._preprocessor = self._describe_training(source)
            for name in SPLITS:
                self._open(source, name)

    def _load(self, *names: str) -> DatasetDict:
        """Returns the data that these splits are taken from, not checked yet."""
        if self.path is not None:
            both = {"train", "val"} if {"train", "val"} & {*names} else set()
            wanted = [self.split_names[name] for name in SPLITS if name in {*names} | both]
            source = read_source(self.path, *self.columns, wanted)
            if both:
                self._settle_validation(source)
            return source
        return self._generate(dict.fromkeys(SPLITS, self.limit or GENERATED_BATCHES * self.batch_size), self.seed)

    def _settle_validation(self, source: DatasetDict) -> None:
        """Holds examples out of the training split only where the data have no validation split."""
        if self.val_split is None or self.val_size is None:
            return
        if find_split(source, self.val_split) is not None:
            self.val_size = None
        else:
            log.info("%s has no split %r: data.val_size=%s of train", self.title, self.val_split, self.val_size)
            self.val_split, self.split_names["val"] = None, self.split_names["train"]

    def _generate(self, counts: dict[str, int], seed: int) -> DatasetDict:
        shape = (self.num_classes or GENERATED_CLASSES, self.image_size, self.num_channels)
        return generate_source(counts, *shape, *self.columns, seed=seed)

    def _describe_training(self, source: DatasetDict) -> ImagePreprocessor:
        train_split = require_split(source, self.title, *self.split_names["train"])
        names = list_label_names(source[train_split], self.columns[1])
        num_classes = self.num_classes or (None if names is None else len(names))
        if num_classes is None:
            raise ValueError(f"column {self.columns[1]!r} of {self.path} declares no classes; set data.num_classes")
        if num_classes < 2:
            raise ValueError(f"{self.title} has one class only: there is nothing to tell apart")
        return ImagePreprocessor(num_classes, names, *self.transform.statistics)

    @property
    def preprocessor(self) -> ImagePreprocessor:
        """Class names of the training split, or as given, and normalisation."""
        self.setup()
        assert self._preprocessor is not None, "set up"
        return self._preprocessor

    def use_preprocessor(self, preprocessor: ImagePreprocessor) -> None:
        """Numbers classes as this one from now on; each split is read when it is first asked for."""
        trained = preprocessor.mean, preprocessor.std
        if self.transform.statistics != trained:
            mean, std = self.transform.statistics
            raise ValueError(f"data.transform has mean={mean} and std={std}, the model was trained with {trained}")
        self._preprocessor, self.num_classes = preprocessor, preprocessor.num_classes
        self.splits, self._sources = {}, {}

    def open_split(self, name: str) -> ImageSplit:
        """Returns `train`, `val` or `test`, checked, with the labels of the model's classes."""
        self.setup()
        if name not in self.splits:
            self._open(self._load(name), name)
        return self.splits[name]

    def _open(self, source: DatasetDict, name: str) -> None:
        """Checks a split, and with `val_size` training and validation together."""
        if name in self.splits:
            return
        opened = self._read(source, name)
        if self.val_size is None or name == "test":
            parts = {name: opened}
        else:
            parts = dict(zip(("train", "val"), opened.divide(self.val_size, self.draw_seed), strict=True))
        self.splits |= {part: split.draw(self.limit, self.draw_seed) for part, split in parts.items()}

    def _read(self, source: DatasetDict, name: str) -> ImageSplit:
        split = require_split(source, self.title, *self.split_names[name])
        names, preprocessor = list_label_names(source[split], self.columns[1]), self.preprocessor
        known = preprocessor.label_names
        others = names if known is not None and names != known else None  # names that are numbered otherwise
        num_classes = preprocessor.num_classes if others is None else len(others)
        opened = open_split(source, split, *self.columns, num_classes=num_classes, path=self.title)
        if others is not None:
            return replace(opened, labels=preprocessor.number_labels(opened.labels, others, opened.name))
        if known is not None and names is None:
            log.warning("%s does not name its classes; assuming that they are numbered as in the model", opened.name)
        return opened

    def model_arguments(self) -> dict[str, Any]:
        """Returns what the data decide about a model: `num_classes`, `img_size`, `in_chans`."""
        num_classes = self.preprocessor.num_classes
        return {"num_classes": num_classes, "img_size": self.image_size, "in_chans": self.num_channels}

    def make_example_batch(self, seed: int) -> Batch:
        """Returns a batch of generated images, as prepared for evaluation."""
        generated = self._generate({"examples": NUM_EXAMPLES}, seed)
        split = open_split(generated, "examples", *self.columns, self.preprocessor.num_classes, GENERATED)
        sampler = EpochSampler(len(split), NUM_EXAMPLES, training=False)
        return next(iter(self._make_source(split, num_workers=0).make_batches(sampler, 0)))

    def make_prediction(self) -> ImagePrediction:
        """Returns what turns images of files into batches, and logits into named classes."""
        mode = PIL_MODES[self.num_channels]
        return ImagePrediction(self.preprocessor, self.transform, mode, self.image_size, self.batch_size)

    def make_loader(self, split: str, training: bool) -> BatchLoader:
        examples = self.open_split(split)
        if split not in self._sources:
            source = self._make_source(examples, self.num_workers)
            self._sources[split] = source
            if split == "test" and self.corruption is not None:
                self._sources[split] = CorruptedBatches(source, self.corruption, *self.transform.statistics)
        sampler = EpochSampler(
            len(examples),
            self.batch_size,
            training=training,
            seed=self.seed,
            num_repeats=self._count_repeats(len(examples)) if training and self.augment else 1,
            augment=self.augment,
            drop_last=self.drop_last,
            accumulation=self.accumulation,
            rank=self.rank,
            world_size=self.world_size,
        )
        return BatchLoader(sampler, partial(self._sources[split].make_batches, sampler))

    def _count_repeats(self, num_examples: int) -> int:
        """Returns how often an example comes in an epoch: once where its copies would meet in one batch."""
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

    def _make_source(self, split: ImageSplit, num_workers: int) -> MemoryBatches | WorkerBatches:
        mode = PIL_MODES[self.num_channels]
        if isinstance(self.transform, BatchTransform):
            return MemoryBatches(split, self.transform, mode)
        return WorkerBatches(split, self.transform, mode, num_workers)
