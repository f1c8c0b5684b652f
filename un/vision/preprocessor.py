"""What the numbers of an image classifier mean: names of its classes, and normalisation of its input."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from textwrap import shorten
from typing import Self

import numpy as np
from numpy.typing import NDArray

FILE = "images.json"
UNKNOWN = -1
MOST_SHOWN = 100  # characters of class names in a message
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImagePreprocessor:
    """Class names and normalisation; attributes are called as in timm's `pretrained_cfg`."""

    num_classes: int
    label_names: tuple[str, ...] | None  # of the classes in order; None where the data do not name them
    mean: tuple[float, ...]  # per channel, on the scale 0 to 1
    std: tuple[float, ...]

    def save(self, folder: Path) -> None:
        content = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        (folder / FILE).write_text(f"{content}\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote; a ValueError says where it is missing or damaged."""
        path = folder / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            names = None if content["label_names"] is None else tuple(content["label_names"])
            return cls(content["num_classes"], names, tuple(content["mean"]), tuple(content["std"]))
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is missing or damaged ({error})") from None

    def explain_difference(self, other: Self) -> str:
        """Describes the first difference from the other one; empty if there is none."""
        for name, mine in asdict(self).items():
            theirs = getattr(other, name)
            if name == "label_names" and mine and theirs:
                for number, names in enumerate(zip_longest(mine, theirs)):
                    if names[0] != names[1]:
                        return f"class {number} {names[0]!r} instead of {names[1]!r}"
            if mine != theirs:
                return f"{name}={mine} instead of {theirs}"
        return ""

    def check_initial_weights(self, trained: Self) -> None:
        """Logs how this differs from what the weights were trained for; they may be a start all the same."""
        difference = self.explain_difference(trained)
        if difference:
            log.info("the initial weights were trained for another task; this one has %s", difference)

    def number_labels(self, labels: NDArray[np.int64], label_names: tuple[str, ...], title: str) -> NDArray[np.int64]:
        """Returns labels (N,) of the data's own classes, of these names, as numbers of the model's classes.

        Raises:
            ValueError: where an example is of a class that the model does not know.
        """
        known = (self.label_names or ())[: self.num_classes]
        numbers = np.array([known.index(name) if name in known else UNKNOWN for name in label_names])
        found: NDArray[np.int64] = numbers[labels]
        if UNKNOWN in found:
            name = label_names[labels[np.argmax(found == UNKNOWN)]]
            shown = shorten(", ".join(known), MOST_SHOWN)
            raise ValueError(f"{title} has examples of class {name!r}, which the model does not know; it knows {shown}")
        log.info("classes of %s are matched by name, because the model numbers them differently", title)
        return found
