"""Between text and the ids of a model: words, subwords and dictionaries, kept with the run that was trained on them.

A folder that holds them has files that fairseq and subword-nmt read, too: `dict.<language>.txt`, `bpe.codes` and a
record of the settings. Folders of prepared data have the same files beside their sentences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from un.translation.fairseq_library import Dictionary
from un.translation.preparation.steps import CODES, RECORD, read_record
from un.translation.text import SEPARATOR, Subwords, detokenize, join_pieces, tokenize

SETTINGS = ("lowercase", "split_hyphens", "split_last_period", "map_apostrophes")  # of `tokenize`
LATER_SETTINGS = SETTINGS[2:]  # which records of early versions do not state


@dataclass(frozen=True, eq=False)
class TextPreprocessor:
    """Splits text into words and these into pieces, as in evaluation, and joins ids to text.

    Args:
        languages: Codes of source and target.
        source_dictionary: Maps pieces of the source to ids.
        target_dictionary: The same for the target; the same object if both sides share one.
        codes: Text of the file of BPE merges; null leaves words whole.
        lowercase: See `tokenize`, also for the next three.
        split_hyphens: As above.
        split_last_period: As above.
        map_apostrophes: As above.
    """

    languages: tuple[str, str]
    source_dictionary: Dictionary
    target_dictionary: Dictionary
    codes: str | None
    lowercase: bool
    split_hyphens: bool = False
    split_last_period: bool = False
    map_apostrophes: bool = False

    def __post_init__(self) -> None:
        self.subwords  # noqa: B018  refuses damaged codes at once

    @cached_property
    def subwords(self) -> Subwords | None:
        return None if self.codes is None else Subwords(self.codes)

    @property
    def dictionaries(self) -> tuple[Dictionary, Dictionary]:
        """Dictionaries of source and target."""
        return self.source_dictionary, self.target_dictionary

    @property
    def takes_text(self) -> bool:
        """Whether text can be split into the dictionary's pieces, for which their codes must have been kept."""
        return self.codes is not None or not any(piece.endswith(SEPARATOR) for piece in self.source_dictionary.symbols)

    def split_words(self, sentence: str, language: str) -> str:
        """Returns the words of a sentence as a reader sees it, joined by spaces."""
        return tokenize(sentence, language, **{name: getattr(self, name) for name in SETTINGS})

    def split_pieces(self, words: str) -> list[str]:
        """Returns the pieces of words."""
        return (words if self.subwords is None else self.subwords.segment(words)).split()

    def decode(self, tokens: Tensor) -> str:
        """Returns the words of a hypothesis (T,) of target ids; an unknown word is <unk>."""
        return join_pieces(self.target_dictionary, tokens)

    def detokenize(self, tokens: str) -> str:
        """Returns words of the target as a reader sees them."""
        return detokenize(tokens, self.languages[1])

    def save(self, folder: Path) -> None:
        """Writes dictionaries, codes and settings into an empty folder."""
        for language, dictionary in zip(self.languages, self.dictionaries, strict=True):
            dictionary.save(str(name_dictionary(folder, language)))
        if self.codes is not None:
            (folder / CODES).write_text(self.codes, encoding="utf-8", newline="")
        record = {name: getattr(self, name) for name in ("languages", *SETTINGS)}
        (folder / RECORD).write_text(f"{json.dumps(record, indent=1)}\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            ValueError: A file is missing or damaged.
        """
        record = read_record(folder)
        required = [name for name in ("languages", *SETTINGS) if name not in LATER_SETTINGS]
        missing = [name for name in required if name not in record]
        if missing:
            raise ValueError(f"{folder / RECORD} does not say {', '.join(missing)}, as the record of a vocabulary does")
        return cls.read(folder, tuple(record["languages"]), {"codes": None})

    @classmethod
    def read(cls, folder: Path, languages: tuple[str, str], unstated: Mapping[str, Any]) -> Self:
        """Reads dictionaries, and codes and settings where there are any.

        Args:
            folder: Has `dict.<language>.txt` for both languages.
            languages: Codes of source and target.
            unstated: `codes` and settings where the folder does not state them.

        Raises:
            ValueError: A file is missing or damaged.
        """
        source, target = (read_dictionary(name_dictionary(folder, language)) for language in languages)
        record, codes = read_record(folder), folder / CODES
        stated = {name: record[name] for name in SETTINGS if name in record}
        if codes.is_file():
            stated["codes"] = codes.read_text(encoding="utf-8")
        return cls(languages, source, source if source == target else target, **{**unstated, **stated})

    def explain_difference(self, other: Self) -> str:
        """Says what this one has instead of what the other has; of several differences, the first."""
        for name in ("languages", *SETTINGS):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name}={mine} instead of {theirs}"
        merges = _explain_entries("BPE codes", (self.codes or "").splitlines(), (other.codes or "").splitlines())
        return merges or self._explain_dictionaries(other)

    def _explain_dictionaries(self, other: Self) -> str:
        pairs = zip(("source", "target"), self.dictionaries, other.dictionaries, strict=True)
        found = (_explain_entries(f"{side} dictionary", mine.symbols, theirs.symbols) for side, mine, theirs in pairs)
        return next(filter(None, found), "")

    def check_initial_weights(self, trained: Self) -> None:
        """Checks that ids mean the same as where weights were trained.

        Raises:
            ValueError: A dictionary differs, so that embeddings would be of other words.
        """
        difference = self._explain_dictionaries(trained)
        if difference:
            raise ValueError(f"the vocabulary of the data differs from theirs ({difference})")


def _explain_entries(what: str, mine: Sequence[str], theirs: Sequence[str]) -> str:
    for place, (one, other) in enumerate(zip_longest(mine, theirs)):
        if one != other:
            shown = ["nothing" if entry is None else repr(entry) for entry in (one, other)]
            return f"{what}: {shown[0]} in place {place} instead of {shown[1]}"
    return ""


def name_dictionary(folder: Path, language: str) -> Path:
    """Returns the path of a language's dictionary, as fairseq names it."""
    return folder / f"dict.{language}.txt"


def read_dictionary(path: Path) -> Dictionary:
    """Returns fairseq's dictionary of a file."""
    try:
        return Dictionary.load(str(path))
    except Exception as error:  # fairseq raises OSError, ValueError, RuntimeError or plain Exception
        raise ValueError(f"{path} is not a dictionary of fairseq ({' '.join(str(error).split())})") from None
