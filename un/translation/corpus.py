"""Data ready for batches: ids for the model, and texts to score against."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from un.translation.fairseq_library import Dictionary, LanguagePairDataset

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitTexts:
    """Texts of a split by the `id` that batches carry.

    Args:
        source: Sentences as a reader sees them.
        reference: Their translations as a reader sees them.
        tokenized_reference: The words that a translation is compared with, lower-cased if the data are.
    """

    source: Sequence[str]
    reference: Sequence[str]
    tokenized_reference: Sequence[str]


@dataclass(eq=False)
class Split:
    """Sentence pairs of one split.

    Args:
        title: For messages, e.g. `train of bentrevett/multi30k`.
        dataset: Sentences of ids; end of sentence counts as a token.
        make_texts: Makes the texts when they are first asked for.
        rows: Number of each pair in the data as they came; the first is 0.
    """

    title: str
    dataset: LanguagePairDataset
    make_texts: Callable[[], SplitTexts]
    rows: Sequence[int]

    @cached_property
    def texts(self) -> SplitTexts:
        return self.make_texts()

    def list_fitting(self, most_source: int, most_target: int, max_tokens: int, training: bool) -> NDArray[np.int64]:
        """Returns the numbers of the pairs that a model and a batch can hold.

        Args:
            most_source: Positions of the encoder.
            most_target: Positions of the decoder.
            max_tokens: Tokens of a batch.
            training: Whether longer pairs are left out, which is logged; otherwise they are an error.

        Raises:
            ValueError: There are longer pairs, or nothing is left.
        """
        limits = np.minimum([most_source, most_target], max_tokens)
        long = np.flatnonzero((self.dataset.sizes > limits).any(axis=1))
        if not len(long):
            return np.arange(len(self.dataset))
        excess = (
            f"{len(long)} of {len(self.dataset)} pairs of {self.title} have more than {limits[0]} source or "
            f"{limits[1]} target tokens (longest {self.dataset.sizes[long].max()}, first in line "
            f"{self.rows[long[0]] + 1})"
        )
        if not training or len(long) == len(self.dataset):
            raise ValueError(
                f"{excess}; shorten them, or raise data.max_tokens={max_tokens}, data.max_source_positions="
                f"{most_source} or data.max_target_positions={most_target}"
            )
        log.warning("%s and are left out", excess)
        return np.setdiff1d(np.arange(len(self.dataset)), long)


def make_dataset(
    source: Sequence[Tensor], target: Sequence[Tensor], source_dictionary: Dictionary, target_dictionary: Dictionary
) -> LanguagePairDataset:
    """Returns fairseq's data set of sentences in memory; sources are padded on the left, targets on the right."""
    sizes = [np.array([len(sentence) for sentence in side]) for side in (source, target)]
    return LanguagePairDataset(source, sizes[0], source_dictionary, target, sizes[1], target_dictionary, shuffle=False)
