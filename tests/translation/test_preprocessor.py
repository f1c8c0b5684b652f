"""A vocabulary is what it was when it is read again, and two that differ are told apart."""

import json
from dataclasses import replace

import pytest
import torch

from un.translation.fairseq_library import Dictionary
from un.translation.preprocessor import TextPreprocessor, read_dictionary, write_dictionary
from un.translation.vocabulary import learn_preprocessor

GERMAN = ["Der kleine Hund läuft .", "Die #fairseq:overwrite 3 Katze madeupword0000", "das ＠＠ und x@@ und <pad> 😀"]
ENGLISH = ["The small dog runs .", "The cat naïve a|b [c]", "that &apos;s it @@ and <unk>"]


def learn(german=GERMAN, merges=5, joined=True, lowercase=False):
    words = [" ".join(line.split()) for line in german]
    return learn_preprocessor((words, ENGLISH), ("de", "en"), lowercase=lowercase, merges=merges, joined=joined)


def save(preprocessor, folder):
    folder.mkdir()
    preprocessor.save(folder)
    return folder


@pytest.mark.parametrize("merges", [None, 1, 5])
@pytest.mark.parametrize("joined", [True, False])
def test_what_is_read_is_what_was_written(tmp_path, merges, joined):
    written = replace(learn(merges=merges, joined=joined, lowercase=True), split_hyphens=True)
    read = TextPreprocessor.load(save(written, tmp_path / "preprocessor"))
    assert read.explain_difference(written) == written.explain_difference(read) == ""
    assert read.source_dictionary.indices == written.source_dictionary.indices
    assert read.target_dictionary.symbols == written.target_dictionary.symbols
    assert (read.source_dictionary is read.target_dictionary) == joined
    assert (read.languages, read.lowercase, read.split_hyphens, read.codes) == (
        ("de", "en"), True, True, written.codes
    )  # fmt: skip
    text = "Der well-known Hund <pad> x@@"
    assert read.encode_source(text) == written.encode_source(text)
    ids = torch.tensor([read.target_dictionary.index(word) for word in ("small", "the", ".")])
    assert read.decode(ids) == written.decode(ids)


def test_fairseq_reads_the_dictionaries(tmp_path):
    written = learn()
    folder = save(written, tmp_path / "preprocessor")
    for language in ("de", "en"):
        assert Dictionary.load(str(folder / f"dict.{language}.txt")) == written.source_dictionary


def test_entries_that_overwrite_others_stay_where_they_are(tmp_path):
    """As in dictionaries for CamemBERT, which name <pad> again."""
    lines = ["<pad> 1 #fairseq:overwrite", "dog 4", "cat 3", "dog 2 #fairseq:overwrite"]
    (tmp_path / "dict.txt").write_text("".join(f"{line}\n" for line in lines))
    dictionary = read_dictionary(tmp_path / "dict.txt")
    write_dictionary(dictionary, tmp_path / "again.txt")
    again = read_dictionary(tmp_path / "again.txt")
    assert again.symbols == dictionary.symbols
    assert again.indices == dictionary.indices
    assert again.index("dog") == 7


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda it: replace(it, lowercase=True), "lowercase=True instead of False"),
        (lambda it: replace(it, split_hyphens=True), "split_hyphens=True instead of False"),
        (lambda it: replace(it, codes=None), "no BPE codes instead of some"),
        (lambda it: replace(it, codes=f"{it.codes}q q\n"), "BPE codes: 'q q' in place 6 instead of nothing"),
        (lambda it: replace(it, target_dictionary=Dictionary()), "target dictionary: nothing in place 4 instead of "),
    ],
)
def test_differences_are_named(change, difference):
    preprocessor = learn()
    assert change(preprocessor).explain_difference(preprocessor).startswith(difference)


def test_codes_where_there_were_none_are_a_difference():
    preprocessor = learn(merges=None)
    assert (
        replace(preprocessor, codes="#version: 0.2\n").explain_difference(preprocessor) == "BPE codes instead of none"
    )


def test_weights_of_another_dictionary_are_no_start():
    trained, other = learn(merges=None), learn(["Der große Hund läuft ."], merges=None)
    learn(merges=None).check_initial_weights(trained)
    replace(trained, languages=("en", "de")).check_initial_weights(trained)  # the same words the other way round
    with pytest.raises(
        ValueError, match=r"another than theirs \(source dictionary: '.+' in place \d+ instead of '.+'\)"
    ):
        other.check_initial_weights(trained)


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("dict.en.txt"), "dict.en.txt is no dictionary of fairseq"),
        (remove("bpe.codes"), "bpe.codes: no such file, but the vocabulary was made with it"),
        (remove("preparation.json"), "preparation.json does not say languages, lowercase, split_hyphens"),
        (write("preparation.json", "{"), "preparation.json is damaged"),
        (write("preparation.json", "[]"), r"preparation.json is damaged \(it holds a list\)"),
        (write("bpe.codes", "a b c\n"), "line 1 of the BPE codes holds no two subwords"),
    ],
)
def test_damage_is_told_in_one_line(tmp_path, spoil, message):
    folder = save(learn(), tmp_path / "preprocessor")
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        TextPreprocessor.load(folder)
    assert "\n" not in str(caught.value)


def test_subwords_without_their_codes_take_no_text(tmp_path):
    preprocessor = replace(learn(), codes=None, takes_text=False)
    read = TextPreprocessor.load(save(preprocessor, tmp_path / "preprocessor"))
    with pytest.raises(ValueError, match="the vocabulary is of subwords but came without bpe"):
        read.encode_source("Der Hund")
    assert json.loads((tmp_path / "preprocessor/preparation.json").read_text())["takes_text"] is False
