"""Test sentences under shift, from those that are there: longer ones, and misspelt ones."""

import random
import re
from collections.abc import Callable
from dataclasses import replace

from un.datasets import derive_seed
from un.translation.sources import ParallelText

Corruption = Callable[[ParallelText], ParallelText]
SEED = 0  # ours: of what a corruption draws
WORD = re.compile(r"[^\W\d_]{4,}")  # of letters, and long enough for two inner ones


def join_neighbours(text: ParallelText, count: int) -> ParallelText:
    """Returns each `count` pairs in a row as one, on both sides; pairs left over at the end are one, too."""
    if count < 2:
        raise ValueError(f"data.corruption.count={count} must be at least 2")
    starts = range(0, len(text), count)
    source, target = ([" ".join(side[n : n + count]) for n in starts] for side in (text.source, text.target))
    return ParallelText(text.title, source, target, [text.rows[start] for start in starts])


def swap_letters(text: ParallelText) -> ParallelText:
    """Returns the pairs with two neighbouring letters swapped in every source word of at least four letters.

    The noise `swap` of Belinkov and Bisk 2018 (arXiv 1711.02173): first and last letter stay. A sentence is misspelt in
    the same way wherever it stands.
    """
    return replace(text, source=[_misspell(sentence) for sentence in text.source])


def _misspell(sentence: str) -> str:
    draw = random.Random(derive_seed(SEED, *sentence.encode()))

    def swap(found: re.Match[str]) -> str:
        word = found[0]
        place = draw.randrange(1, len(word) - 2)
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]

    return WORD.sub(swap, sentence)
