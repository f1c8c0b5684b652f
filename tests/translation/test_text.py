import io

import pytest
import torch
from subword_nmt.learn_bpe import learn_bpe

from un.translation.fairseq_library import Dictionary
from un.translation.text import Subwords, check_language, count_words, detokenize, join_pieces, learn_codes, tokenize
from un.translation.vocabulary import build_dictionary, learn_preprocessor

LINES = [
    "Low lower lowest, isn't it?",
    "The @@ sign, x@@ and @@@@ too & <more>",
    "new newer newest widest",
    "a|b [c] “d”",
]


def learn(lines, merges):
    return Subwords(learn_codes(count_words(lines), merges))


def test_moses_tokens_are_escaped_and_come_back():
    text = 'Isn\'t that "it", <he> asked?'
    assert tokenize(text, "en") == "Isn &apos;t that &quot; it &quot; , &lt; he &gt; asked ?"
    assert detokenize(tokenize("Isn't it, he said?", "en"), "en") == "Isn't it, he said?"
    assert tokenize(" Ein\u00a0Hund\tläuft \u202f weg. ", "de", lowercase=True) == "ein hund läuft weg ."


def test_hyphens_are_split_on_demand():
    assert tokenize("well-known", "en") == "well-known"
    assert tokenize("well-known", "en", split_hyphens=True) == "well @-@ known"


@pytest.mark.parametrize("merges", [None, 20])
def test_pieces_become_the_words_they_came_from(merges):
    words = [tokenize(line, "en") for line in LINES]
    preprocessor = learn_preprocessor((words, words), ("de", "en"), lowercase=False, merges=merges, joined=True)
    dictionary = preprocessor.target_dictionary
    for line in words:
        pieces = preprocessor.split_pieces(line)
        ids = torch.tensor([dictionary.index(piece) for piece in pieces] + [dictionary.eos()] + [dictionary.pad()] * 2)
        assert dictionary.unk() not in ids
        assert preprocessor.decode(ids) == line


@pytest.mark.parametrize("word", ["@@", "x@@", "@@x"])
def test_words_that_look_like_pieces_survive(word):
    subwords = learn([f"{word} and {word}"] * 5, 100)
    pieces = subwords.segment(f"{word} and {word}")
    dictionary = build_dictionary(count_words([pieces]))
    ids = torch.tensor([dictionary.index(piece) for piece in pieces.split()])
    assert join_pieces(dictionary, ids) == f"{word} and {word}"


def test_merges_are_those_of_the_text_itself(capsys):
    expected = io.StringIO()
    learn_bpe([f"{line}\n" for line in LINES], expected, 15)
    capsys.readouterr()
    assert learn_codes(count_words(LINES), 15) == expected.getvalue()
    assert capsys.readouterr() == ("", "")  # no progress bar
    assert learn(["a b c"], 10).segment("a bc") == "a b@@ c"  # nothing to merge


def test_damaged_codes_are_reported_with_their_line():
    with pytest.raises(ValueError, match="line 3 of the BPE codes does not hold two subwords: 'abc'"):
        Subwords("#version: 0.2\na b\nabc\n")


def test_unknown_words_of_a_reference_match_no_translation():
    dictionary = Dictionary()
    ids = torch.tensor([dictionary.add_symbol("dog"), dictionary.unk(), dictionary.eos()])
    assert join_pieces(dictionary, ids) == "dog <unk>"
    assert join_pieces(dictionary, ids, escape_unknown=True) == "dog <<unk>>"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("xx", "data.source_lang='xx' is not a language code, as de"),
        ("", "data.source_lang='' is not a language code"),
        ("german", "data.source_lang='german' is not a language code; did you mean 'de'"),
    ],
)
def test_unknown_language(code, message):
    with pytest.raises(ValueError, match=message):
        check_language(code, "data.source_lang")


def test_a_language_without_abbreviations_is_logged(caplog):
    check_language("de", "data.source_lang")
    assert not caplog.messages
    check_language("ja", "data.source_lang")
    assert "Moses knows no abbreviations of Japanese (ja)" in caplog.text
