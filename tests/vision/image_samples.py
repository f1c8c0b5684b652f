"""Small image sets made on the spot."""

import datasets
import numpy as np


def draw_images(count, seed=0, size=12):
    """Returns `count` RGB images of noise."""
    return list(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def make_dataset(count, seed=0, size=12, num_classes=3, labels=None, image_column="img", label_column="label"):
    """Returns a data set of noise; labels go round the classes."""
    features = datasets.Features(
        {image_column: datasets.Image(), label_column: datasets.ClassLabel(num_classes=num_classes)}
    )
    labels = [row % num_classes for row in range(count)] if labels is None else labels
    return datasets.Dataset.from_dict(
        {image_column: draw_images(count, seed, size), label_column: labels}, features=features
    )
