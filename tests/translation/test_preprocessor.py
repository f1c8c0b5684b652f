"""A vocabulary is the same when it is read again, and two that differ are told apart."""

from dataclasses import replace

import pytest

from un.translation.fairseq_library import Dictionary
from un.translation.preprocessor import TextPreprocessor
from un.translation.vocabulary import learn_preprocessor

GERMAN = ["Der kleine Hund läuft .", "Die #fairseq:overwrite 3 Katze madeupword0000", "das ＠＠ und x@@ und <pad> 😀"]
ENGLISH = ["The small dog runs .", "The cat naïve a|b [c]", "that &apos;s it @@ and <unk>"]


def learn(german=GERMAN, merges=5, joined=True):
    words = [" ".join(line.split()) for line in german]
    return learn_preprocessor((words, ENGLISH), ("de", "en"), lowercase=True, merges=merges, joined=joined)


@pytest.fixture(scope="module")
def learned():
    return learn()


def save(preprocessor, folder):
    folder.mkdir()
    preprocessor.save(folder)
    return folder


@pytest.mark.parametrize("merges", [None, 5])
@pytest.mark.parametrize("joined", [True, False])
def test_what_is_read_is_what_was_written(tmp_path, merges, joined):
    written = replace(learn(merges=merges, joined=joined), split_hyphens=True)
    folder = save(written, tmp_path / "preprocessor")
    read = TextPreprocessor.load(folder)
    assert read.explain_difference(written) == written.explain_difference(read) == ""
    assert read.source_dictionary.indices == written.source_dictionary.indices
    assert read.target_dictionary.symbols == written.target_dictionary.symbols
    assert (read.source_dictionary is read.target_dictionary) == joined
    assert (read.languages, read.lowercase, read.split_hyphens) == (("de", "en"), True, True)
    assert (read.codes, read.takes_text) == (written.codes, written.takes_text)
    assert read.split_pieces("der hund <pad> x@@") == written.split_pieces("der hund <pad> x@@")
    for language, dictionary in zip(("de", "en"), written.dictionaries, strict=True):
        assert Dictionary.load(str(folder / f"dict.{language}.txt")) == dictionary


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"split_hyphens": True}, "split_hyphens=True instead of False"),
        ({"codes": None}, "BPE codes: nothing in place 0 instead of '#version"),
        ({"codes": "#version: 0.2\nq q\n"}, "BPE codes: 'q q' in place 1 instead of "),
        ({"target_dictionary": Dictionary()}, "target dictionary: nothing in place 4 instead of "),
    ],
)
def test_differences_are_named(learned, change, difference):
    assert replace(learned, **change).explain_difference(learned).startswith(difference)


def test_subwords_without_their_codes_take_no_text(learned, tmp_path):
    folder = save(learned, tmp_path / "preprocessor")
    (folder / "bpe.codes").unlink()
    assert learned.takes_text
    assert not TextPreprocessor.load(folder).takes_text


def test_weights_of_another_dictionary_are_no_start(learned):
    learn().check_initial_weights(learned)
    replace(learned, languages=("en", "de")).check_initial_weights(learned)  # the same words the other way round
    differs = r"differs from theirs \(source dictionary: '.+' in place \d+ instead of '.+'\)"
    with pytest.raises(ValueError, match=differs):
        learn(["Der große Hund läuft ."]).check_initial_weights(learned)


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("dict.en.txt"), "dict.en.txt is not a dictionary of fairseq"),
        (remove("preparation.json"), "preparation.json does not say languages, lowercase, split_hyphens"),
        (write("preparation.json", "{"), "preparation.json is damaged"),
        (write("preparation.json", "[]"), r"preparation.json is damaged \(it holds a list\)"),
        (write("bpe.codes", "a b c\n"), "line 1 of the BPE codes does not hold two subwords"),
    ],
)
def test_damage_is_reported_in_one_line(tmp_path, learned, spoil, message):
    folder = save(learned, tmp_path / "preprocessor")
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        TextPreprocessor.load(folder)
    assert "\n" not in str(caught.value)
