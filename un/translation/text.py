"""Text to tokens and back: Moses words, subwords, dictionary entries.

Between the stages, tokens of a sentence are joined by single spaces, as in the files that Moses, subword-nmt and
fairseq exchange.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from babel import Locale, parse_locale
from babel.core import get_global
from sacremoses import MosesDetokenizer, MosesTokenizer
from sacremoses.corpus import NonbreakingPrefixes
from subword_nmt.apply_bpe import BPE
from subword_nmt.learn_bpe import learn_bpe

if TYPE_CHECKING:
    from torch import Tensor

    from un.translation.fairseq_library import Dictionary

SEPARATOR = "@@"  # subword-nmt's mark of a piece that the next one continues
LAST_PERIOD = re.compile(r"(?<=[^\s.])\.$")
log = logging.getLogger(__name__)


@functools.lru_cache
def find_language(code: str) -> str | None:
    """Returns the language of a code as Moses and CLDR name it, e.g. zh of zh-CN; null where there is none.

    Args:
        code: ISO 639, which a script and a region may follow, as in pt_BR and zh-Hans-CN.
    """
    try:
        language, region, script = parse_locale(code.replace("-", "_"))[:3]
    except ValueError:
        return None
    english = Locale("en")
    language = get_global("language_aliases").get(language, language)  # of three letters: eng, zho
    known = language in english.languages
    known &= region is None or region in english.territories
    known &= script is None or script in english.scripts
    return language if known else None


def check_language(code: str, key: str) -> None:
    """Checks that a code names a language, and warns if Moses has no rules of its own for it.

    Args:
        code: See `find_language`.
        key: The config key that it is from, for the message.

    Raises:
        ValueError: CLDR knows no such language, script or region.
    """
    names = Locale("en").languages
    language = find_language(code)
    if language is None:
        matches = [known for known, name in names.items() if name.lower() == code.lower()]
        hint = f"; did you mean {matches[0]!r}?" if matches else ", as de (German), zh-CN or pt_BR"
        raise ValueError(f"{key}={code!r} is not a language code{hint}")
    if language not in NonbreakingPrefixes().available_langs.values():
        log.warning("Moses knows no abbreviations of %s (%s); it takes those of English", names[language], code)


@functools.lru_cache
def make_tokenizer(language: str) -> MosesTokenizer:
    return MosesTokenizer(find_language(language))


@functools.lru_cache
def make_detokenizer(language: str) -> MosesDetokenizer:
    return MosesDetokenizer(find_language(language))


def tokenize(
    line: str,
    language: str,
    *,
    split_hyphens: bool = False,
    lowercase: bool = False,
    split_last_period: bool = False,
    map_apostrophes: bool = False,
) -> str:
    """Returns the Moses tokens of a sentence, special characters escaped, as tokenizer.perl.

    Args:
        line: One sentence.
        language: Its code.
        split_hyphens: Whether a-b becomes a @-@ b (option -a).
        lowercase: Whether the tokens are lower-cased.
        split_last_period: Whether the last period of a line is always a token, as in tokenizer.perl since its change of
            November 2018; sacremoses leaves it at abbreviations, single letters, and in German at numbers.
        map_apostrophes: Whether typographic apostrophes are first made plain ones.
    """
    line = line.replace("’", "'") if map_apostrophes else line
    tokens = make_tokenizer(language).tokenize(line, aggressive_dash_splits=split_hyphens, return_str=True)
    tokens = LAST_PERIOD.sub(" .", tokens).strip() if split_last_period else tokens
    return tokens.lower() if lowercase else tokens


def detokenize(tokens: str, language: str) -> str:
    """Returns text as a reader sees it, special characters unescaped, as detokenizer.perl."""
    return make_detokenizer(language).detokenize(tokens.split())


class Subwords:
    """Byte-pair encoding with subword-nmt.

    Args:
        codes: Text of a file of merges, as `subword-nmt learn-bpe` writes it.
    """

    def __init__(self, codes: str) -> None:
        lines = codes.splitlines()
        header = len(lines) > 0 and lines[0].startswith("#version")
        for number, line in enumerate(lines[header:], 1 + header):
            if len(line.split(" ")) != 2:
                raise ValueError(f"line {number} of the BPE codes does not hold two subwords: {line[:50]!r}")
        self._codes = BPE(io.StringIO(codes), merges=len(lines) - header, separator=SEPARATOR)

    def segment(self, tokens: str) -> str:
        """Returns the pieces of the tokens; those that another one continues end in @@.

        A word that itself ends in @@ has its last character split off: otherwise it would be taken for such a piece.
        """
        pieces = []
        for word in tokens.split():
            *start, end = self._codes.segment_tokens([word])
            pieces += [*start, f"{end[:-1]}{SEPARATOR}", end[-1]] if end.endswith(SEPARATOR) else [*start, end]
        return " ".join(pieces)


def learn_codes(counts: Mapping[str, int], merges: int) -> str:
    """Returns the file of merges that subword-nmt learns from words and how often each occurs.

    The order of the words decides between merges that are equally good.
    """
    counts = {word: count for word, count in counts.items() if word}
    if all(len(word) == 1 for word in counts):
        return "#version: 0.2\n"  # nothing to merge, for which learn_bpe has no answer
    words = io.StringIO("".join(f"{word} {count}\n" for word, count in counts.items()))
    codes = io.StringIO()
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        learn_bpe(words, codes, merges, is_dict=True)
    return codes.getvalue()


def join_pieces(dictionary: Dictionary, tokens: Tensor, escape_unknown: bool = False) -> str:
    """Returns the words that ids (T,) stand for, without padding and end of sentence.

    Args:
        dictionary: Maps the ids to pieces.
        tokens: On any device.
        escape_unknown: For a reference: writes <<unk>>, which no hypothesis can match.
    """
    pad = [dictionary.pad()]
    return dictionary.string(tokens.tolist(), f"{SEPARATOR} ", escape_unknown, extra_symbols_to_ignore=pad)


def count_words(sentences: Iterable[str]) -> Counter[str]:
    """Returns how often each word occurs, in the order of first appearance."""
    return Counter(word for sentence in sentences for word in sentence.split())
