"""Test sentences under shift."""

import re

import pytest

from un.translation.corruption import join_neighbours, swap_letters
from un.translation.data import TranslationDataModule
from un.translation.sources import ParallelText

TEXT = ParallelText("test", ["Ein Hund schläft.", "Wer?", "Kommst du morgen?"], ["a", "b", "c"], [4, 7, 9])


def test_neighbours_become_one():
    joined = join_neighbours(TEXT, 2)
    assert joined.source == ["Ein Hund schläft. Wer?", "Kommst du morgen?"]
    assert joined.target == ["a b", "c"]
    assert joined.rows == [4, 9]
    with pytest.raises(ValueError, match=r"data.corruption.count=1 must be at least 2"):
        join_neighbours(TEXT, 1)


def test_inner_letters_are_swapped():
    swapped = swap_letters(TEXT)
    assert swapped == swap_letters(TEXT)
    assert (swapped.target, swapped.rows) == (TEXT.target, TEXT.rows)
    assert swapped.source[1] == "Wer?"
    for old, new in zip(TEXT.source, swapped.source, strict=True):
        for before, after in zip(re.findall(r"\w+", old), re.findall(r"\w+", new), strict=True):
            assert sorted(before) == sorted(after)
            assert (before[0], before[-1]) == (after[0], after[-1])
            assert sum(a != b for a, b in zip(before, after, strict=True)) == (0 if len(before) < 4 else 2)
    alone = ParallelText("test", ["Kommst du morgen?"], ["c"], [0])
    assert swap_letters(alone).source == swapped.source[2:]


def test_of_the_test_split_alone(text_folder, text_data):
    arguments = {"max_tokens": 60, "val_split": "valid", "bpe_merges": 30}
    data = TranslationDataModule(str(text_folder), "de", "en", corruption=lambda text: text.select([0]), **arguments)
    data.use_preprocessor(text_data.preprocessor)
    assert len(data.open_split("test").rows) == 1
    assert len(data.open_split("val").rows) == len(text_data.open_split("val").rows) > 1
