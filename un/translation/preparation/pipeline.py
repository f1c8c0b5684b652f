"""From parallel text to fairseq's binary files: the steps that all recipes share, and a recipe as data."""

import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from un.translation.preparation.lines import (
    RAW,
    SPLITS,
    Languages,
    map_lines,
    name_files,
    read_lines,
    read_rows,
    write_lines,
    write_rows,
)
from un.translation.preparation.sentences import Limits, normalize
from un.translation.preparation.steps import CODES, Counts, Steps
from un.translation.text import Subwords, count_words, learn_codes, tokenize

Rows = Iterator[tuple[str, ...]]


@dataclass(frozen=True)
class Recipe:
    """What differs between recipes.

    Args:
        name: Name in the record.
        data: Name of the config that reads the product.
        languages: Codes of source and target.
        merges: Byte-pair merges, learned on both sides of the training text together.
        every: Every n-th training pair is held out for validation; null if there is a validation text.
        word_limits: Which training pairs are kept, by their words, before any is held out; null keeps all.
        subword_limits: Which training and validation pairs are kept, by their subwords; null keeps all.
        normalize: Whether punctuation is normalised in the training text; then evaluation text has only its
            apostrophes mapped.
        split_hyphens: See `tokenize`.
        split_last_period: See `tokenize`.
        lowercase: Whether tokens are lower-cased.
        joined: Whether both sides share one dictionary, which sharing all embeddings needs.
        words: Maximum number of entries of a dictionary, special symbols included; -1 sets no limit.
    """

    name: str
    data: str
    languages: Languages
    merges: int
    every: int | None = None
    word_limits: Limits | None = None
    subword_limits: Limits | None = None
    normalize: bool = False
    split_hyphens: bool = False
    split_last_period: bool = True
    lowercase: bool = False
    joined: bool = True
    words: int = -1

    @property
    def given_splits(self) -> tuple[str, ...]:
        """Splits that the text must have before any pair is held out."""
        return ("train", "test") if self.every else SPLITS

    def choose_tokenizer(self, split: str, language: str) -> Callable[[str], str]:
        """Returns a function from a line of a split to its tokens."""
        return functools.partial(self.tokenize_line, language=language, split=split)

    def tokenize_line(self, line: str, language: str, split: str) -> str:
        if self.normalize and split == "train":
            line = normalize(line, language)
        return tokenize(
            line,
            language,
            split_hyphens=self.split_hyphens,
            split_last_period=self.split_last_period,
            lowercase=self.lowercase,
            map_apostrophes=self.normalize and split != "train",
        )

    def describe(self, **choices: Any) -> dict[str, Any]:
        """Returns what a reader of the product has to know, among it how evaluation text becomes tokens."""
        return {
            "data": self.data,
            "recipe": self.name,
            "source_lang": self.languages[0],
            "target_lang": self.languages[1],
            "lowercase": self.lowercase,
            "split_hyphens": self.split_hyphens,
            "split_last_period": self.split_last_period,
            "map_apostrophes": self.normalize,
            "dictionary": "joined" if self.joined else "separate",
            "merges": self.merges,
            **choices,
        }


def prepare_text(steps: Steps, text: Path, recipe: Recipe, choices: dict[str, Any], workers: int) -> Path:
    """Runs the steps that follow once the untokenised text is there, and returns the output folder.

    The text has the recipe's `given_splits`; `choices` is what else goes into the record.
    """
    languages, settings = recipe.languages, asdict(recipe)

    def run(name: str, deciding: Sequence[str], action: Callable[[Path], Counts]) -> Path:
        return steps.run(name, {setting: settings[setting] for setting in deciding}, action)

    tokens = run(
        "3-tokens",
        ("normalize", "split_hyphens", "split_last_period", "lowercase"),
        lambda folder: tokenize_text(text, folder, recipe, workers),
    )
    divided = run("4-divided", ("every", "word_limits"), lambda folder: divide_text(tokens, text, folder, recipe))
    training = name_files(divided, "train", languages)
    codes = run("5-merges", ("merges",), lambda folder: learn_merges(training, folder / CODES, recipe.merges)) / CODES
    subwords = run("6-subwords", (), lambda folder: split_text(divided, codes, folder, languages, workers))
    limits, final = recipe.subword_limits, subwords
    if limits is not None:
        final = run("7-clean", ("subword_limits",), lambda folder: clean_text(subwords, folder, languages, limits))
    return finish(steps, final, codes, recipe, choices, workers)


def finish(steps: Steps, text: Path, codes: Path, recipe: Recipe, choices: dict[str, Any], workers: int) -> Path:
    """Runs the last step, which makes the product from a text in subwords; the codes may be missing."""
    from un.translation.preparation.binarization import binarize  # imports fairseq

    def make_product(folder: Path) -> Counts:
        if codes.is_file():
            shutil.copyfile(codes, folder / CODES)
        return binarize(text, folder, recipe.languages, joined=recipe.joined, words=recipe.words, workers=workers)

    return steps.finish(recipe.describe(**choices), make_product)


def map_text(
    text: Path,
    output: Path,
    splits: Sequence[str],
    languages: Languages,
    choose: Callable[[str, str], Callable[[str], str]],
    workers: int,
) -> Counts:
    """Writes a text whose lines are functions of another's; `choose(split, language)` returns the function."""
    counts = {}
    for split in splits:
        for language in languages:
            name = f"{split}.{language}"
            lines = map_lines(choose(split, language), read_lines(text / name), workers)
            counts[name] = write_lines(output / name, lines)
    return counts


def tokenize_text(text: Path, output: Path, recipe: Recipe, workers: int) -> Counts:
    """Tokenises the splits that are there."""
    return map_text(text, output, recipe.given_splits, recipe.languages, recipe.choose_tokenizer, workers)


def divide_text(tokens: Path, raw: Path, output: Path, recipe: Recipe) -> Counts:
    """Drops training pairs outside the limits and holds every n-th of the others out, if the recipe asks for it."""
    every, limits, languages = recipe.every, recipe.word_limits, recipe.languages

    def read_training(held_out: bool) -> Rows:
        rows = read_pairs(tokens, raw, "train", languages)
        kept = (row for row in rows if limits is None or limits.accept(*row[:2]))
        return (row for number, row in enumerate(kept, 1) if bool(every and number % every == 0) == held_out)

    training = (row[:2] for row in read_training(held_out=False))
    valid = read_training(held_out=True) if every else read_pairs(tokens, raw, "valid", languages)
    return {
        "train": write_rows(name_files(output, "train", languages), training),
        "valid": write_pairs(output, "valid", languages, valid),
        "test": write_pairs(output, "test", languages, read_pairs(tokens, raw, "test", languages)),
    }


def clean_text(text: Path, output: Path, languages: Languages, limits: Limits) -> Counts:
    """Drops pairs of `train` and `valid` outside the limits; the untokenised validation text loses the same lines."""
    training = read_rows(*name_files(text, "train", languages))
    valid = read_pairs(text, text / RAW, "valid", languages)
    return {
        "train": write_rows(name_files(output, "train", languages), (row for row in training if limits.accept(*row))),
        "valid": write_pairs(output, "valid", languages, (row for row in valid if limits.accept(*row[:2]))),
        "test": write_pairs(output, "test", languages, read_pairs(text, text / RAW, "test", languages)),
    }


def read_pairs(text: Path, raw: Path, split: str, languages: Languages) -> Rows:
    """Yields rows of two tokenised and two untokenised lines."""
    return read_rows(*name_files(text, split, languages), *name_files(raw, split, languages))


def write_pairs(output: Path, split: str, languages: Languages, rows: Rows) -> int:
    """Writes such rows, and returns their number."""
    return write_rows([*name_files(output, split, languages), *name_files(output / RAW, split, languages)], rows)


def learn_merges(texts: Sequence[Path], output: Path, merges: int) -> Counts:
    """Learns byte-pair merges on several files together, as `learn_bpe.py -s <merges>` on their concatenation."""
    codes = learn_codes(count_words(chain.from_iterable(map(read_lines, texts))), merges)
    return {"merges": write_lines(output, codes.splitlines()) - 1}  # the first line names the format


def split_text(text: Path, codes: Path, output: Path, languages: Languages, workers: int) -> Counts:
    """Splits the words of a text into subwords."""
    load_codes.cache_clear()  # the file may be another than at the last call
    function = functools.partial(split_words, codes=codes)
    shutil.copytree(text / RAW, output / RAW)
    return map_text(text, output, SPLITS, languages, lambda split, language: function, workers)


def split_words(line: str, codes: Path) -> str:
    """Returns a tokenised line in subwords."""
    return load_codes(codes).segment(line)


@functools.lru_cache
def load_codes(path: Path) -> Subwords:
    """Returns the merges of a file, read once per process."""
    return Subwords(path.read_text(encoding="utf-8"))
