"""Where parallel text comes from: the phrasebook, the Hugging Face hub, local folders of Parquet or of plain text."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from un.datasets import load_dataset, require_split
from un.translation.preparation.lines import name_files, read_rows
from un.translation.text import find_language

PHRASEBOOK = "phrasebook"
PHRASEBOOK_SEED = 0  # ours: the same sentences in every run, whatever its seed
PHRASEBOOK_COUNTS = {"test": 1000, "val": 1000, "train": 20_000}  # ours; drawn in this order
# Of a data set that has to be prepared: a part of its usual folder's name -> what makes the folder.
PREPARED = {"iwslt14": "scripts/prepare_iwslt14.py", "wmt14": "scripts/prepare_wmt14.py"}
BYTE_ORDER_MARK = "\ufeff"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParallelText:
    """Sentences of one split and their translations.

    Args:
        title: For messages, e.g. `train of bentrevett/multi30k`.
        source: Sentences as a reader sees them.
        target: Their translations.
        rows: Number of each pair in the data as they came; the first is 0.
    """

    title: str
    source: Sequence[str]
    target: Sequence[str]
    rows: Sequence[int]

    def __post_init__(self) -> None:
        if not len(self.source):
            raise ValueError(f"{self.title} is empty")

    def __len__(self) -> int:
        return len(self.source)

    def select(self, indices: Sequence[int]) -> "ParallelText":
        """Returns the pairs with these numbers, in their order."""
        source, target = ([side[index] for index in indices] for side in (self.source, self.target))
        return ParallelText(self.title, source, target, [self.rows[index] for index in indices])

    def drop_empty(self) -> "ParallelText":
        """Returns the pairs with words on both sides, and logs how many there are without."""
        pairs = zip(self.source, self.target, strict=True)
        kept = [index for index, pair in enumerate(pairs) if all(side.strip() for side in pair)]
        if len(kept) == len(self):
            return self
        log.info("%s: %d pairs with an empty side are left out", self.title, len(self) - len(kept))
        return self.select(kept)


def draw_rows(num_rows: int, count: int | None, seed: int) -> list[int]:
    """Returns at most `count` row numbers (null: all), drawn without replacement, in increasing order."""
    if count is None or count >= num_rows:
        return list(range(num_rows))
    return np.sort(np.random.default_rng(seed).permutation(num_rows)[:count]).tolist()


def read_text(path: str, languages: tuple[str, str], name: str, split: str) -> ParallelText:
    """Returns a split.

    Args:
        path: `phrasebook`, a folder with two files per split, or what `load_dataset` takes.
        languages: Codes of source and target: the suffixes of files and the names of columns.
        name: `train`, `val` or `test`.
        split: Its name in the data.

    Raises:
        ValueError: Something is missing, empty or unreadable.
    """
    if path == PHRASEBOOK:
        return generate_texts(languages, PHRASEBOOK_COUNTS)[name]
    stems = {file.stem for language in languages for file in Path(path).glob(f"*.{language}")}
    if stems:
        return read_files(Path(path), require_split(sorted(stems), path, split), languages)
    return read_columns(path, languages, split)


def generate_texts(languages: tuple[str, str], counts: Mapping[str, int]) -> dict[str, ParallelText]:
    """Returns splits of the phrasebook that share no sentence; German to English unless English is the source."""
    from un.translation.phrasebook import generate_pairs

    pairs, start, texts = generate_pairs(sum(counts.values()), PHRASEBOOK_SEED), 0, {}
    for name, count in counts.items():
        rows = range(start, start + count)
        german, english = zip(*(pairs[row] for row in rows), strict=True)
        sides = (english, german) if find_language(languages[0]) == "en" else (german, english)
        texts[name] = ParallelText(f"{name} of the phrasebook", *sides, rows)
        start += count
    return texts


def read_files(folder: Path, split: str, languages: tuple[str, str]) -> ParallelText:
    r"""Returns the lines of `<split>.<language>` of both languages; they end in \n or \r\n, and nowhere else."""
    rows = list(read_rows(*name_files(folder, split, languages)))
    source, target = ([row[side].removesuffix("\r") for row in rows] for side in (0, 1))
    for side in (source, target):
        side[:1] = [line.removeprefix(BYTE_ORDER_MARK) for line in side[:1]]
    return ParallelText(f"{split} of {folder}", source, target, range(len(rows)))


def read_columns(path: str, languages: tuple[str, str], split: str) -> ParallelText:
    """Returns columns of two languages, which may lie in a column of dictionaries, as Hugging Face's `translation`."""
    try:
        source = load_dataset(path, configs=["-".join(languages), "-".join(languages[::-1])])
    except ValueError as error:
        script = next((script for name, script in PREPARED.items() if name in path), None)
        cure = f"{script} makes such a folder" if script else f"a folder holds {describe_files(languages)}"
        raise ValueError(f"{error}; {cure} (docs/data.md)") from error
    found = require_split(source, path, split)
    title = f"{found} of {path}"
    sides = [read_column(source[found], language, title) for language in languages]
    return ParallelText(title, sides[0], sides[1], range(len(sides[0])))


def describe_files(languages: tuple[str, str]) -> str:
    """Returns what a folder of parallel text may hold."""
    return f"train.{languages[0]} and train.{languages[1]} (and so on), or Parquet files"


def read_column(dataset: datasets.Dataset, language: str, title: str) -> list[str]:
    """Returns the sentences of a language: a column, or the values of that key in a column of dictionaries."""
    if language in dataset.column_names:
        column, sentences = language, list(dataset[language])
    else:
        column = find_dictionaries(dataset, language, title)
        sentences = [None if pair is None else pair.get(language) for pair in dataset[column]]
    for row, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            key = "" if column == language else f" for {language!r}"
            raise ValueError(f"column {column!r} of {title} must hold text, but row {row} holds {sentence!r}{key}")
    return sentences


def find_dictionaries(dataset: datasets.Dataset, key: str, title: str) -> str:
    """Returns the name of the column of dictionaries in which a key occurs."""
    listed = []
    for name in dataset.column_names:
        keys = {key for pair in dataset[name] if isinstance(pair, Mapping) for key in pair}
        if key in keys:
            return name
        listed.append(f"{name} ({', '.join(sorted(keys))})" if keys else name)
    raise ValueError(f"no column {key!r} in {title}; there are {', '.join(listed)}")
