"""From parallel text to ids: words, subwords and dictionaries learned on the training split."""

from collections.abc import Mapping, Sequence

from un.translation.corpus import Corpus, Split, SplitTexts, encode_pieces, make_dataset
from un.translation.fairseq_library import Dictionary
from un.translation.sources import ParallelText
from un.translation.text import Subwords, TextCodec, count_words, learn_codes, tokenize

PADDING_FACTOR = 8  # fairseq's: dictionaries are filled up to a multiple of it
Sides = tuple[list[str], list[str]]  # source and target sentences


def encode_texts(
    texts: Mapping[str, ParallelText],
    languages: tuple[str, str],
    *,
    lowercase: bool,
    merges: int | None,
    joined: bool,
) -> Corpus:
    """Tokenise text, learn subwords and dictionaries on `train`, and encode all splits.

    Args:
        texts: `train`, `val` and `test`.
        languages: Codes of source and target.
        lowercase: Whether tokens are lower-cased.
        merges: Of byte-pair encoding, learned on both sides together; null leaves words whole.
        joined: Whether both sides share one dictionary.
    """
    words = {name: _tokenize_sides(text, languages, lowercase) for name, text in texts.items()}
    subwords = None
    pieces = words
    if merges is not None:
        counts = count_words(sentence for side in words["train"] for sentence in side)
        subwords = Subwords(learn_codes(counts, merges))
        pieces = {name: _segment_sides(sides, subwords) for name, sides in words.items()}
    source, target = pieces["train"]
    source_dictionary = build_dictionary([source, target] if joined else [source])
    target_dictionary = source_dictionary if joined else build_dictionary([target])
    dictionaries = (source_dictionary, target_dictionary)
    codec = TextCodec(*languages, target_dictionary, subwords, lowercase)
    splits = {name: _encode_split(text, words[name][1], pieces[name], dictionaries) for name, text in texts.items()}
    return Corpus(splits, codec, *dictionaries)


def _tokenize_sides(text: ParallelText, languages: tuple[str, str], lowercase: bool) -> Sides:
    source, target = (
        [tokenize(sentence, language) for sentence in side]
        for side, language in zip((text.source, text.target), languages, strict=True)
    )
    return (_lower(source), _lower(target)) if lowercase else (source, target)


def _lower(sentences: list[str]) -> list[str]:
    return [sentence.lower() for sentence in sentences]


def _segment_sides(sides: Sides, subwords: Subwords) -> Sides:
    source, target = ([subwords.segment(sentence) for sentence in side] for side in sides)
    return source, target


def _encode_split(
    text: ParallelText, words: list[str], pieces: Sides, dictionaries: tuple[Dictionary, Dictionary]
) -> Split:
    source, target = (
        [encode_pieces(sentence.split(), dictionary) for sentence in side]
        for side, dictionary in zip(pieces, dictionaries, strict=True)
    )
    texts = SplitTexts(list(text.source), list(text.target), words)
    return Split(text.title, make_dataset(source, target, *dictionaries), lambda: texts, text.rows)


def build_dictionary(sides: Sequence[Sequence[str]]) -> Dictionary:
    """Return fairseq's dictionary of the pieces, the most frequent first."""
    dictionary = Dictionary()
    for piece, count in count_words(sentence for side in sides for sentence in side).items():
        dictionary.add_symbol(piece, n=count)
    dictionary.finalize(padding_factor=PADDING_FACTOR)
    return dictionary
