"""From parallel text to ids: words, subwords and dictionaries learned on the training split. Shapes: T length."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from un.translation.corpus import Split, SplitTexts, make_dataset
from un.translation.fairseq_library import Dictionary
from un.translation.preparation.steps import CODES
from un.translation.preprocessor import TextPreprocessor
from un.translation.sources import ParallelText
from un.translation.text import Subwords, count_words, learn_codes, tokenize

PADDING_FACTOR = 8  # fairseq's: dictionaries are filled up to a multiple of it
Sides = tuple[list[str], list[str]]  # source and target sentences, words joined by spaces


def split_sides(text: ParallelText, languages: tuple[str, str], lowercase: bool) -> Sides:
    """Returns the words of both sides, lower-cased or not."""
    source = [tokenize(sentence, languages[0], lowercase=lowercase) for sentence in text.source]
    return source, [tokenize(sentence, languages[1], lowercase=lowercase) for sentence in text.target]


def learn_preprocessor(
    words: Sides, languages: tuple[str, str], *, lowercase: bool, merges: int | None, joined: bool
) -> TextPreprocessor:
    """Learns subwords and dictionaries on the words of a training split.

    Args:
        words: Both sides, as `split_sides` returns them.
        languages: Codes of source and target.
        lowercase: Whether the words are lower-cased.
        merges: Number of byte-pair merges, learned on both sides together; null leaves words whole.
        joined: Whether both sides share one dictionary.
    """
    source, target = (count_words(side) for side in words)
    both = count_words([*words[0], *words[1]])
    codes = None if merges is None else learn_codes(both, merges)
    subwords = None if codes is None else Subwords(codes)
    source_dictionary = build_dictionary(both if joined else source, subwords)
    target_dictionary = source_dictionary if joined else build_dictionary(target, subwords)
    return TextPreprocessor(languages, source_dictionary, target_dictionary, codes, lowercase)


def build_dictionary(counts: Mapping[str, int], subwords: Subwords | None = None, words: int = -1) -> Dictionary:
    """Returns fairseq's dictionary of the pieces of words, the most frequent first.

    Args:
        counts: How often each word occurs.
        subwords: Split the words; null leaves them whole.
        words: Maximum number of entries, special symbols included; -1 sets no limit.
    """
    dictionary = Dictionary()
    for word, count in counts.items():
        for piece in (word if subwords is None else subwords.segment(word)).split():
            dictionary.add_symbol(piece, n=count)
    dictionary.finalize(nwords=words, padding_factor=PADDING_FACTOR)
    return dictionary


def encode_text(text: ParallelText, preprocessor: TextPreprocessor) -> Split:
    """Encodes a split with a vocabulary that is there.

    Raises:
        ValueError: The vocabulary is of subwords, and came without codes.
    """
    if not preprocessor.takes_text:
        raise ValueError(
            f"the vocabulary is of subwords but came without {CODES}, so that text cannot be split into them; give a "
            "folder that fairseq-preprocess made with this vocabulary"
        )
    source, target = (
        [preprocessor.split_words(sentence, language) for sentence in side]
        for side, language in zip((text.source, text.target), preprocessor.languages, strict=True)
    )
    return encode_words(text, (source, target), preprocessor)


def encode_words(text: ParallelText, words: Sides, preprocessor: TextPreprocessor) -> Split:
    """Encodes a split whose words are known already."""
    source, target = (
        [encode_pieces(preprocessor.split_pieces(sentence), dictionary) for sentence in side]
        for side, dictionary in zip(words, preprocessor.dictionaries, strict=True)
    )
    texts = SplitTexts(text.source, text.target, words[1])
    return Split(text.title, make_dataset(source, target, *preprocessor.dictionaries), lambda: texts, text.rows)


def encode_pieces(pieces: Sequence[str], dictionary: Dictionary) -> Tensor:
    """Returns the ids (T,) of pieces and of the end of sentence."""
    unknown, indices = dictionary.unk(), dictionary.indices
    return torch.tensor([*(indices.get(piece, unknown) for piece in pieces), dictionary.eos()])
