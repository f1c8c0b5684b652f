"""Classifying images of files. Shapes: B batch, C channels, S image size, K classes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from un.vision.image_folder import keep_images, list_files
from un.vision.pixels import convert_image, decode_image
from un.vision.preprocessor import ImagePreprocessor
from un.vision.transforms import BatchTransform, ImageTransform

Classes = dict[str, float]  # name of a class, or its number where it has none -> probability, the likeliest first
COLUMNS = ("image", "rank", "class", "probability")


@dataclass(frozen=True)
class ImagePrediction:
    """Turns files or Pillow's images into batches as in evaluation, and logits into named probabilities.

    Args:
        preprocessor: Knows the names of the classes.
        transform: That of the training data.
        mode: Pillow's mode of the model's input, L or RGB.
        image_size: S.
        batch_size: B.
    """

    preprocessor: ImagePreprocessor
    transform: BatchTransform | ImageTransform
    mode: str
    image_size: int
    batch_size: int

    def read(self, source: str) -> list[str]:
        """Returns the paths of an image, or of all images below a folder."""
        path = Path(source)
        if path.is_file():
            return [source]
        if not path.is_dir():
            raise ValueError(f"input={source}: no such image or folder ({path.resolve()})")
        images = keep_images(list_files(path))
        if not images:
            raise ValueError(f"input={source}: no file below this folder has the suffix of an image")
        return [str(path / image.relative_to(path.absolute())) for image in images]

    def make_batches(self, images: Sequence[Any]) -> Iterator[tuple[Sequence[int], tuple[Tensor, Tensor]]]:
        """Yields the places of some images, and their batch with labels that mean nothing."""
        for start in range(0, len(images), self.batch_size):
            places = range(start, min(start + self.batch_size, len(images)))
            batch = torch.stack([self._prepare(images[place]) for place in places])
            yield places, (batch, torch.zeros(len(batch), dtype=torch.int64))

    def _prepare(self, image: Any) -> Tensor:
        """Turns an image or the path of one into numbers (C, S, S)."""
        try:
            is_open = isinstance(image, Image.Image)
            opened = convert_image(image, self.mode) if is_open else decode_image(_name_file(image), self.mode)
        except Exception as error:  # Pillow meets damage with whatever it makes it do
            reason = "cut short or not an image" if isinstance(error, UnidentifiedImageError) else error
            raise ValueError(f"unreadable image: {image} ({reason})") from error
        prepared = self.transform.prepare(opened)
        if prepared.shape[1:] != (self.image_size, self.image_size):
            raise ValueError(f"{image} has {opened.width} x {opened.height} pixels, the model takes {self.image_size}")
        return prepared

    def interpret(self, logits: Tensor, topk: int = 1) -> list[Classes]:
        """Returns the `topk` likeliest classes of every image of a batch, from logits (B, K)."""
        names = self.preprocessor.label_names or tuple(map(str, range(self.preprocessor.num_classes)))
        if not 1 <= topk <= len(names):
            raise ValueError(f"topk={topk} must be between 1 and {len(names)}, the number of classes")
        found = logits.float().softmax(dim=1).topk(topk)
        return [
            {names[number]: probability for number, probability in zip(numbers, probabilities, strict=True)}
            for numbers, probabilities in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]

    def write(self, images: Sequence[Any], results: Sequence[Classes]) -> str:
        """Returns a CSV table with a row for every image and class."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        for image, classes in zip(images, results, strict=True):
            for rank, (name, probability) in enumerate(classes.items(), 1):
                writer.writerow([image, rank, name, f"{probability:.6f}"])
        return table.getvalue()


def _name_file(path: Any) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ValueError("no such file")
    return {"path": str(path), "bytes": None}
