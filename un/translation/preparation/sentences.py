"""What happens to one line: markup removed, punctuation normalised, tokenised, kept or dropped.

The Moses scripts named here are those of moses-smt/mosesdecoder; sacremoses has most of them in Python.
"""

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import regex
from sacremoses import MosesPunctNormalizer

DROPPED_MARKS = ("<url>", "<talkid>", "<keywords>")
STRIPPED_MARKS = re.compile(r"</?(?:title|description)>")
SEGMENT_MARKS = re.compile(r'<seg id="[0-9]*">\s*|\s*</seg>\s*')
UNPRINTABLE = regex.compile(r"\p{C}")
LONGEST_WORD = 1000  # characters; clean-corpus-n.perl drops lines with a longer word
MOSES_RATIO = 9.0  # clean-corpus-n.perl without -ratio


def strip_tags(lines: Iterable[str]) -> Iterator[str]:
    """Yields the text of a tagged training file: metadata lines dropped, titles and descriptions kept as text."""
    for line in lines:
        if not any(mark in line for mark in DROPPED_MARKS):
            yield STRIPPED_MARKS.sub("", line)


def read_segments(lines: Iterable[str]) -> Iterator[str]:
    """Yields the text of the <seg> lines of an evaluation file (XML or SGML); entities stay as they are."""
    for line in lines:
        if "<seg id" in line:
            yield SEGMENT_MARKS.sub("", line)


def normalize(line: str, language: str) -> str:
    """Returns the line with punctuation normalised and a space for every non-printing character.

    This is what normalize-punctuation.perl and then remove-non-printing-char.perl do.
    """
    line = make_normalizer(language).normalize(f"{line}\n")  # for German, the script moves quotes before line ends
    return UNPRINTABLE.sub(" ", line)


@functools.lru_cache
def make_normalizer(language: str) -> MosesPunctNormalizer:
    """Returns the language's normaliser of punctuation, with the results of the Perl script."""
    return MosesPunctNormalizer(language, perl_parity=True)


@dataclass(frozen=True)
class Limits:
    """Which pairs of tokenised lines clean-corpus-n.perl keeps.

    Args:
        shortest: Minimum number of tokens of a side; an empty side never passes.
        longest: Maximum number of tokens of a side.
        ratio: The longer side may have at most this many times the tokens of the shorter one.
    """

    shortest: int
    longest: int
    ratio: float = MOSES_RATIO

    def accept(self, source: str, target: str) -> bool:
        """Tells whether a pair is kept; in addition, no word may be absurdly long."""
        words = source.split(), target.split()
        few, many = sorted(len(side) for side in words)
        if few == 0 or few < self.shortest or many > self.longest or many / few > self.ratio:
            return False
        return all(len(word) <= LONGEST_WORD for side in words for word in side)
