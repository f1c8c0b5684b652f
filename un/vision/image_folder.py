"""Folders of images as `<split>/<class>/.../<image>`: the first level is the split and the second the class.

The Hugging Face library has such a reader, too; it looks for names such as "train" on every level and takes the
innermost folder for the class. torchvision's follows links in circles and takes hidden folders for classes.
"""

import itertools
import logging
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from un.datasets import find_split

LEFT_BY_SYSTEMS = ("__MACOSX", "@eaDir")  # by archives of macOS, by Synology's stores; other such names begin with "."
log = logging.getLogger(__name__)


def read_class_folders(
    root: Path, splits: Sequence[Sequence[str]] | None, image_column: str, label_column: str
) -> datasets.DatasetDict | None:
    """Reads an image folder; the names of its splits and classes are those of the folders.

    Classes are numbered by sorted name. `splits` holds the names that each split wanted may have, see `find_split`;
    None takes every folder with images.

    Returns:
        None where no class folder holds an image, so that the data must be of another kind.

    Raises:
        ValueError: for a class or a split without images, or a class that only some splits have.
    """
    names = keep_visible(entry.name for entry in root.iterdir() if entry.is_dir())
    if splits is not None:
        found = [find_split(names, *wanted) for wanted in splits]
        names = [name for name in names if name in found]
    contents = {name: list_classes(root / name) for name in names}
    filled = {name: classes for name, classes in contents.items() if any(classes.values())}
    if not filled:
        return None
    for name in contents:
        if name not in filled and splits is not None:
            raise ValueError(f"{root / name} holds no images in class folders, {name}/<class>/<image>")
    check_classes(root, filled)
    return datasets.DatasetDict(
        {name: pack_classes(classes, image_column, label_column) for name, classes in filled.items()}
    )


def keep_visible(names: Iterable[str]) -> list[str]:
    """Returns the sorted names without those that are hidden or left by operating systems."""
    return sorted(name for name in names if not name.startswith(".") and name not in LEFT_BY_SYSTEMS)


def list_classes(split: Path) -> dict[str, list[str]]:
    """Returns the images of a split by class; names that differ only in how they code an accent are one class."""
    classes: dict[str, list[str]] = {}
    num_others = 0
    for name in keep_visible(entry.name for entry in split.iterdir() if entry.is_dir()):
        files = list_files(split / name)
        images = [str(file) for file in keep_images(files)]
        classes.setdefault(unicodedata.normalize("NFC", name), []).extend(images)
        num_others += len(files) - len(images)
    if num_others:
        log.info("%s: left out %d files without the suffix of an image", split, num_others)
    return classes


def keep_images(files: Iterable[Path]) -> list[Path]:
    """Returns the files with the suffix of an image."""
    formats = Image.registered_extensions()  # which also fills Image.OPEN
    return [file for file in files if formats.get(file.suffix.lower()) in Image.OPEN]


def list_files(folder: Path) -> list[Path]:
    """Returns the absolute paths of the files below a class folder, also through links, each folder once."""
    seen = {parent.resolve() for parent in folder.parents[:2]}  # a link that leads up to them leads nowhere
    found: list[Path] = []
    for place, folders, files in os.walk(folder.absolute(), followlinks=True):
        real = Path(place).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = keep_visible(folders)
        found += [Path(place, name) for name in keep_visible(files)]
    return sorted(found, key=lambda path: path.parts)


def check_classes(root: Path, contents: Mapping[str, Mapping[str, list[str]]]) -> None:
    """Checks that every split has images of the same classes."""
    for split, classes in contents.items():
        for name, files in classes.items():
            if not files:
                raise ValueError(f"{root / split / name} holds no image; add some or remove the folder")
    for split, other in itertools.permutations(contents, 2):
        missing = [name for name in contents[split] if name not in contents[other]]
        if missing:
            raise ValueError(
                f"{root}: {split} has {len(missing)} class folder(s) that {other} lacks, such as {missing[0]!r}; "
                "all splits need the same"
            )


def pack_classes(classes: Mapping[str, list[str]], image_column: str, label_column: str) -> datasets.Dataset:
    """Returns a data set of files, in the order of classes and names."""
    names = sorted(classes)
    files = [file for name in names for file in classes[name]]
    labels = np.repeat(np.arange(len(names)), [len(classes[name]) for name in names])
    return pack_images(files, labels, names, image_column, label_column)


def pack_images(
    images: Sequence[Any], labels: NDArray[np.int64], names: Sequence[str], image_column: str, label_column: str
) -> datasets.Dataset:
    """Returns a data set of paths or arrays, (H, W) or (H, W, 3) each, with class numbers and the classes' names."""
    features = datasets.Features({image_column: datasets.Image(), label_column: datasets.ClassLabel(names=[*names])})
    return datasets.Dataset.from_dict({image_column: [*images], label_column: labels}, features=features)
