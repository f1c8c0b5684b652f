"""Folders of images as `<split>/<class>/.../<image>`: the first level is the split and the second the class.

The Hugging Face library has such a reader, too; it looks for names such as "train" on every level and takes the
innermost folder for the class. torchvision's follows links in circles and takes hidden folders for classes.
"""

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from un.datasets import find_split, is_usual_split

LEFT_BY_SYSTEMS = ("__MACOSX", "@eaDir")  # by archives of macOS, by Synology's stores; other such names begin with "."
NO_PICTURES = ("BUFR", "GRIB", "HDF5", "MPEG")  # formats whose endings Pillow knows and whose pixels it does not read
LISTED = 3  # of many names in a message
log = logging.getLogger(__name__)


def read_class_folders(
    root: Path, splits: Sequence[Sequence[str]] | None, image_column: str, label_column: str
) -> datasets.DatasetDict | None:
    """Reads an image folder; the names of its splits and classes are those of the folders.

    Args:
        root: the folder.
        splits: the names that each split wanted may have, see `find_split`; None: all there are.
        image_column: column to put the images in.
        label_column: column to put the class numbers in, which count the sorted names.

    Returns:
        None where no class folder holds an image, so that the data must be of another kind.

    Raises:
        ValueError: for a class or a split without images, a class that only some splits have, or a broken link.
    """
    names = [entry.name for entry in list_entries(root) if entry.is_dir()]
    if splits is not None:
        found = [find_split(names, *wanted) for wanted in splits]
        names = [name for name in names if name in found]
    contents = {name: list_classes(root / name) for name in names}
    filled = {name: classes for name, classes in contents.items() if any(classes.values())}
    if not filled:
        return None
    for name in contents:
        if name not in filled and (splits is not None or is_usual_split(name)):
            raise ValueError(f"{root / name} holds no images in class folders, {name}/<class>/<image>")
    check_classes(root, filled)
    return datasets.DatasetDict(
        {name: pack_files(classes, image_column, label_column) for name, classes in filled.items()}
    )


def list_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Returns what is in a folder, by name, but for hidden things and what operating systems leave."""
    with os.scandir(folder) as entries:
        seen = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in LEFT_BY_SYSTEMS]
    return sorted(seen, key=lambda entry: entry.name)


def list_classes(folder: Path) -> dict[str, list[str]]:
    """Returns the images of a split by class; names that differ only in how they code an accent are one class.

    Raises:
        ValueError: for a broken link, or a name that is not text.
    """
    classes: dict[str, list[str]] = {}
    left_out: Counter[str] = Counter()
    formats = Image.registered_extensions()  # which also fills Image.OPEN
    endings = {ending for ending, name in formats.items() if name in Image.OPEN and name not in NO_PICTURES}
    for entry in list_entries(folder):
        if not entry.is_dir():
            left_out[Path(entry.name).suffix or entry.name] += 1
            continue
        files = classes.setdefault(unicodedata.normalize("NFC", entry.name), [])
        for file in walk(entry.path, (os.path.realpath(folder.parent), os.path.realpath(folder))):
            ending = Path(file.name).suffix
            if ending.lower() in endings:
                files.append(find_path(file))
            else:
                left_out[ending or file.name] += 1
    if left_out and any(classes.values()):
        counts = ", ".join(f"{count} {ending}" for ending, count in left_out.most_common(LISTED))
        log.info("%s: left out files outside class folders or without the ending of an image: %s", folder, counts)
    return classes


def walk(folder: str, above: tuple[str, ...]) -> Iterator[os.DirEntry[str]]:
    """Yields the files below a folder, also through links, but not through a link to one of the folders `above`.

    Args:
        folder: to begin with.
        above: the folders that it is in, without links in their paths.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in list_entries(folder):
        if entry.is_dir():
            yield from walk(entry.path, (*above, real))
        else:
            yield entry


def find_path(file: os.DirEntry[str]) -> str:
    """Returns the absolute path of a file.

    Raises:
        ValueError: where it is not a file, or its name is not text.
    """
    if not file.is_file():
        raise ValueError(f"{file.path} is not a file; if it is a link, it is broken")
    path = os.path.abspath(file.path)
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name of {path!a} is not UTF-8; rename it") from None
    return path


def check_classes(root: Path, contents: Mapping[str, Mapping[str, list[str]]]) -> None:
    """Checks that every split has images of the same classes.

    Raises:
        ValueError: where they have not.
    """
    for split, classes in contents.items():
        for name, files in classes.items():
            if not files:
                raise ValueError(f"{root / split / name} holds no image; add some or remove the folder")
    for split, classes in contents.items():
        for other, others in contents.items():
            missing = [repr(name) for name in classes if name not in others]
            if missing:
                more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
                raise ValueError(
                    f"{root}: {split} has class folders that {other} lacks ({', '.join(missing[:LISTED])}{more}); "
                    "all splits need the same"
                )


def pack_files(classes: Mapping[str, list[str]], image_column: str, label_column: str) -> datasets.Dataset:
    """Returns a data set of files, in the order of classes and names."""
    names = sorted(classes)
    features = datasets.Features({image_column: datasets.Image(), label_column: datasets.ClassLabel(names=names)})
    files = [file for name in names for file in classes[name]]
    labels = np.repeat(np.arange(len(names)), [len(classes[name]) for name in names])
    return datasets.Dataset.from_dict({image_column: files, label_column: labels}, features=features)
