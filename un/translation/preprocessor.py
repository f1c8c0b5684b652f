"""Between text and the ids of a model: words, subwords and dictionaries, kept with the run that was trained on them.

A folder that holds them has files that fairseq and subword-nmt read, too: `dict.<language>.txt`, `bpe.codes` and a
record of the settings. Folders of prepared data have the same beside their sentences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from un.translation.fairseq_library import Dictionary
from un.translation.preparation.pipeline import CODES
from un.translation.preparation.steps import RECORD, read_record
from un.translation.text import Subwords, detokenize, join_pieces, tokenize

OVERWRITE = "#fairseq:overwrite"  # fairseq's mark of a line whose entry stands further up, too
SETTINGS = ("languages", "lowercase", "split_hyphens", "takes_text")


@dataclass(frozen=True, eq=False)
class TextPreprocessor:
    """Text to pieces, and ids back to text.

    Args:
        languages: Codes of source and target.
        source_dictionary: Of the source ids.
        target_dictionary: Of the target ids; the same object if both sides share one.
        codes: Text of the file of BPE merges; null leaves words whole.
        lowercase: Whether text is lower-cased.
        split_hyphens: See `tokenize`.
        takes_text: Whether text can be split into the dictionary's pieces: not if nobody has kept the codes for it.

    Raises:
        ValueError: The codes hold something else than merges.
    """

    languages: tuple[str, str]
    source_dictionary: Dictionary
    target_dictionary: Dictionary
    codes: str | None
    lowercase: bool
    split_hyphens: bool = False
    takes_text: bool = True

    def __post_init__(self) -> None:
        self.subwords  # noqa: B018  damaged codes are told at once

    @cached_property
    def subwords(self) -> Subwords | None:
        """Splits words; null leaves them whole."""
        return None if self.codes is None else Subwords(self.codes)

    def split_pieces(self, words: str) -> list[str]:
        """Return the pieces of words."""
        return (words if self.subwords is None else self.subwords.segment(words)).split()

    def encode_source(self, text: str) -> list[str]:
        """Return the pieces of a source sentence; see `check_takes_text`."""
        return self._encode(text, self.languages[0])

    def encode_target(self, text: str) -> list[str]:
        """Return the pieces of a target sentence; see `check_takes_text`."""
        return self._encode(text, self.languages[1])

    def _encode(self, text: str, language: str) -> list[str]:
        self.check_takes_text()
        return self.split_pieces(tokenize(text, language, self.split_hyphens, self.lowercase))

    def check_takes_text(self) -> None:
        """Check that text can be encoded.

        Raises:
            ValueError: It cannot.
        """
        if not self.takes_text:
            raise ValueError(
                f"the vocabulary is of subwords but came without {CODES}, so that text cannot be split into them; give "
                "a folder that fairseq-preprocess made with this vocabulary"
            )

    def decode(self, tokens: Tensor) -> str:
        """Return the words of a hypothesis (T,) of target ids; an unknown word is <unk>."""
        return join_pieces(self.target_dictionary, tokens)

    def detokenize(self, tokens: str) -> str:
        """Return words of the target as a reader sees them."""
        return detokenize(tokens, self.languages[1])

    def save(self, folder: Path) -> None:
        """Write dictionaries, codes and settings into an empty folder."""
        for language, dictionary in zip(self.languages, (self.source_dictionary, self.target_dictionary), strict=True):
            write_dictionary(dictionary, name_dictionary(folder, language))
        if self.codes is not None:
            (folder / CODES).write_text(self.codes, encoding="utf-8", newline="")
        record = {name: getattr(self, name) for name in SETTINGS} | {"bpe_codes": self.codes is not None}
        (folder / RECORD).write_text(f"{json.dumps(record, indent=1)}\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: A file is missing or damaged.
        """
        record = read_record(folder)
        missing = [name for name in (*SETTINGS, "bpe_codes") if name not in record]
        if missing:
            raise ValueError(f"{folder / RECORD} does not say {', '.join(missing)}, as the record of a vocabulary does")
        if record["bpe_codes"] and not (folder / CODES).is_file():
            raise ValueError(f"{folder / CODES}: no such file, but the vocabulary was made with it")
        return cls.read(folder, tuple(record["languages"]), {"codes": None})

    @classmethod
    def read(cls, folder: Path, languages: tuple[str, str], unstated: Mapping[str, Any]) -> Self:
        """Read dictionaries, and codes and settings where there are any.

        Args:
            folder: Has `dict.<language>.txt` for both languages.
            languages: Codes of source and target.
            unstated: `codes` and settings where the folder does not tell them.

        Raises:
            ValueError: A file is missing or damaged.
        """
        source, target = (read_dictionary(name_dictionary(folder, language)) for language in languages)
        record, codes = read_record(folder), folder / CODES
        stated = {name: record[name] for name in SETTINGS if name in record} | {"languages": languages}
        if codes.is_file():
            stated["codes"] = codes.read_text(encoding="utf-8")
        return cls(
            source_dictionary=source,
            target_dictionary=source if source == target else target,
            **{**unstated, **stated},
        )

    def explain_difference(self, other: Self) -> str:
        """Say what this one has instead of what the other has, of several differences the first."""
        for name in SETTINGS:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name}={mine} instead of {theirs}"
        if self.codes is None or other.codes is None:
            if self.codes is not other.codes:
                return "no BPE codes instead of some" if self.codes is None else "BPE codes instead of none"
            return self._explain_dictionaries(other)
        merges = _explain_entries("BPE codes", self.codes.splitlines(), other.codes.splitlines())
        return merges or self._explain_dictionaries(other)

    def _explain_dictionaries(self, other: Self) -> str:
        source = _explain_entries("source dictionary", self.source_dictionary.symbols, other.source_dictionary.symbols)
        target = _explain_entries("target dictionary", self.target_dictionary.symbols, other.target_dictionary.symbols)
        return source or target

    def check_initial_weights(self, trained: Self) -> None:
        """Check that ids mean the same as where weights were trained.

        Raises:
            ValueError: A dictionary differs, so that embeddings would be of other words.
        """
        difference = self._explain_dictionaries(trained)
        if difference:
            raise ValueError(f"the vocabulary of the data is another than theirs ({difference})")


def _explain_entries(what: str, mine: list[str], theirs: list[str]) -> str:
    for place, (one, other) in enumerate(zip_longest(mine, theirs)):
        if one != other:
            shown = ["nothing" if entry is None else repr(entry) for entry in (one, other)]
            return f"{what}: {shown[0]} in place {place} instead of {shown[1]}"
    return ""


def name_dictionary(folder: Path, language: str) -> Path:
    """Return the path of a language's dictionary, as fairseq names it."""
    return folder / f"dict.{language}.txt"


def write_dictionary(dictionary: Dictionary, path: Path) -> None:
    """Write a dictionary for `read_dictionary`; fairseq's own method forgets which entries overwrite others."""
    seen, lines = set(dictionary.symbols[: dictionary.nspecial]), []
    entries = zip(dictionary.symbols, dictionary.count, strict=True)
    for symbol, count in list(entries)[dictionary.nspecial :]:
        lines.append(f"{symbol} {count}{f' {OVERWRITE}' if symbol in seen else ''}\n")
        seen.add(symbol)
    path.write_text("".join(lines), encoding="utf-8", newline="")


def read_dictionary(path: Path) -> Dictionary:
    """Return fairseq's dictionary of a file.

    Raises:
        ValueError: It is missing or holds something else.
    """
    try:
        return Dictionary.load(str(path))
    except Exception as error:  # fairseq raises OSError, ValueError, RuntimeError or plain Exception
        raise ValueError(f"{path} is no dictionary of fairseq ({' '.join(str(error).split())})") from None
