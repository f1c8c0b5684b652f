"""Where images come from: the Hugging Face hub, local folders, scikit-learn's digits, or a generator.

Everything becomes a Hugging Face `DatasetDict` with an image column and a label column, and then, split by split, an
`ImageSplit` that has been checked.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from un.datasets import load_dataset, require_split
from un.vision.image_folder import pack_images, read_class_folders
from un.vision.pixels import decode_image

DIGITS = "sklearn-digits"
DIGITS_TEST_SIZE = 360  # ours: a fixed fifth of the 1,797 images, the same in every run
DIGITS_MAXIMUM = 16  # grey levels of scikit-learn's digits
PATTERN_CELLS = 4  # generated images are a grid of 4 x 4 plain cells
PATTERN_NOISE = 48  # standard deviation of the noise on a cell, of 255


@dataclass(frozen=True)
class ImageSplit:
    """Images and labels of one split."""

    name: str  # for messages, e.g. `train of uoft-cs/cifar10`
    files: datasets.Dataset  # of one column, with images that are not decoded yet
    labels: NDArray[np.int64]  # (N,) class numbers
    rows: NDArray[np.int64]  # (N,) numbers of the examples in `files`

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: NDArray[np.int64]) -> Self:
        """Returns the examples with these numbers, in increasing order."""
        indices = np.sort(indices)
        return replace(self, labels=self.labels[indices], rows=self.rows[indices])

    def draw(self, count: int | None, seed: int) -> Self:
        """Returns at most `count` examples, drawn without replacement; all for None."""
        if count is None or count >= len(self):
            return self
        return self.select(np.random.default_rng(seed).permutation(len(self))[:count])

    def divide(self, size: int | float, seed: int) -> tuple[Self, Self]:
        """Holds `size` examples (or that fraction) out, by class where every class has enough; returns (rest, held)."""
        count = round(size * len(self)) if isinstance(size, float) else size
        if not 0 < count < len(self):
            raise ValueError(f"data.val_size={size} must leave examples on both sides of {self.name} ({len(self)})")
        class_sizes = np.bincount(self.labels)
        num_classes = np.count_nonzero(class_sizes)
        enough = class_sizes[class_sizes > 0].min() > 1 and min(count, len(self) - count) >= num_classes
        rest, held = train_test_split(
            np.arange(len(self)), test_size=count, random_state=seed, stratify=self.labels if enough else None
        )
        return self.select(rest), self.select(held)

    def decode(self, index: int, mode: str) -> Image.Image:
        """Returns one image in Pillow's mode L or RGB; a ValueError says which one cannot be read."""
        row = int(self.rows[index])
        (file,) = self.files[row].values()
        try:
            return decode_image(file, mode)
        except Exception as error:
            path = f", {file['path']}" if file is not None and file["path"] else ""
            reason = "cut short or not an image" if isinstance(error, UnidentifiedImageError) else error
            raise ValueError(f"unreadable image: row {row} of {self.name}{path} ({reason})") from error

    def decode_all(self, mode: str) -> Tensor:
        """Returns all images as uint8 (N, C, H, W)."""
        arrays: list[NDArray[np.uint8]] = []
        for index, row in enumerate(self.rows):
            arrays.append(np.atleast_3d(np.asarray(self.decode(index, mode))))
            height, width, _ = arrays[-1].shape
            if arrays[-1].shape != arrays[0].shape:
                raise ValueError(
                    f"images of {self.name} differ in size ({width}x{height} in row {row}); "
                    "use data=image_folder, whose transform takes any size"
                )
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def read_source(
    path: str, image_column: str, label_column: str, splits: Sequence[Sequence[str]] | None = None
) -> datasets.DatasetDict:
    """Reads the splits of a hub id, a local folder (Parquet files or class folders), or scikit-learn's digits.

    The columns name those of digits and class folders. Of class folders, `splits` holds the names that each split
    wanted may have; None takes every split.
    """
    if path == DIGITS:
        return read_digits(image_column, label_column)
    if not os.path.isdir(path):
        return load_dataset(path)
    source = read_class_folders(Path(path), splits, image_column, label_column)
    if source is not None:
        return source
    source = load_dataset(path)
    first = next(iter(source.values()))
    has_labels = label_column in first.features and not isinstance(first.features[label_column], datasets.ClassLabel)
    if first.info.builder_name == "imagefolder" and not has_labels:  # from a table beside the images
        wanted = "" if splits is None else f" of {', '.join(names[0] for names in splits)}"
        raise ValueError(f"data.path={path!r}: no images in <split>/<class>/ for any split{wanted}")
    return source


def read_digits(image_column: str, label_column: str) -> datasets.DatasetDict:
    """Returns scikit-learn's 8 x 8 handwritten digits, with a test split that is the same in every run."""
    digits = load_digits()
    images, labels = np.round(digits.images * (255 / DIGITS_MAXIMUM)).astype(np.uint8), digits.target
    train, test = train_test_split(np.arange(len(images)), test_size=DIGITS_TEST_SIZE, random_state=0, stratify=labels)
    names = [str(name) for name in digits.target_names]
    return datasets.DatasetDict(
        {
            split: pack_images(images[rows], labels[rows], names, image_column, label_column)
            for split, rows in (("train", train), ("test", test))
        }
    )


def generate_source(
    counts: dict[str, int],
    num_classes: int,
    image_size: int,
    num_channels: int,
    image_column: str,
    label_column: str,
    seed: int,
) -> datasets.DatasetDict:
    """Returns images of `num_classes` coloured 4 x 4 patterns under noise, `counts` of them per split.

    The patterns do not depend on the seed; noise and labels do, and they differ between the splits.
    """
    patterns = np.random.default_rng(0).integers(0, 256, (num_classes, PATTERN_CELLS, PATTERN_CELLS, num_channels))
    cells = (np.arange(image_size) * PATTERN_CELLS) // image_size  # pixel -> cell
    names = [str(number) for number in range(num_classes)]
    splits = {}
    for number, (split, count) in enumerate(counts.items()):
        random = np.random.default_rng((seed, number))
        labels = random.permutation(np.arange(count) % num_classes)
        noisy = patterns[labels] + random.normal(0, PATTERN_NOISE, (count, *patterns.shape[1:]))
        images = noisy.clip(0, 255).astype(np.uint8)[:, cells][:, :, cells]
        images = images[..., 0] if num_channels == 1 else images
        splits[split] = pack_images(images, labels, names, image_column, label_column)
    return datasets.DatasetDict(splits)


def open_split(
    source: datasets.DatasetDict, name: str, image_column: str, label_column: str, num_classes: int, path: str
) -> ImageSplit:
    """Returns one split after checking its columns and labels."""
    name = require_split(source, path, name)
    dataset, title = source[name], f"{name} of {path}"
    for column in (image_column, label_column):
        if column not in dataset.column_names:
            raise ValueError(f"no column {column!r} in {title}; there are {', '.join(dataset.column_names)}")
    if not len(dataset):
        raise ValueError(f"{title} is empty")
    images = dataset.select_columns([image_column])
    try:  # bytes and paths without a declared type are taken for images
        files = images.cast_column(image_column, datasets.Image(decode=False))
    except Exception as error:
        kind = images.features[image_column]
        raise ValueError(f"column {image_column!r} of {title} holds no images but {kind}") from error
    labels = read_labels(dataset, label_column, num_classes, title)
    return ImageSplit(title, files, labels, np.arange(len(labels)))


def read_labels(dataset: datasets.Dataset, column: str, num_classes: int, title: str) -> NDArray[np.int64]:
    labels = np.asarray(dataset.with_format("arrow")[:][column].to_pandas())
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"column {column!r} of {title} must hold a class number in every row, not {labels.dtype}")
    if labels.min() < 0 or labels.max() >= num_classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"label {wrong} in column {column!r} of {title} is outside the {num_classes} classes")
    return labels.astype(np.int64)


def list_label_names(dataset: datasets.Dataset, column: str) -> tuple[str, ...] | None:
    """Returns the names of the classes that the label column declares, None where it declares none."""
    feature: Any = dataset.features.get(column)
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
