import json
import shutil
from dataclasses import replace

import pytest
import torch

from un.translation.data import TranslationDataModule
from un.translation.fairseq_library import Dictionary, restore_global_state

SPLITS = {"train": "train", "valid": "val", "test": "test"}
PIECES = {
    "de": ["ein klein@@ er hund .", "die katz@@ e schläft .", "der hund schläft .", "das ist &quot; neu &quot; ."],
    "en": ["a small dog .", "the cat sleep@@ s .", "the dog sleep@@ s .", "this is &quot; new &quot; ."],
}
RAW = {
    "de": ["Ein kleiner Hund.", "Die Katze schläft.", "Der Hund schläft.", 'Das ist "neu".'],
    "en": ["A small dog.", "The cat sleeps.", "The dog sleeps.", 'This is "new".'],
}


@pytest.fixture(scope="module")
def fairseqs_folder(tmp_path_factory):
    """What `fairseq-preprocess` makes of a few lines; `test` has words that `train` lacks."""
    folder = tmp_path_factory.mktemp("prepared")
    for language, lines in PIECES.items():
        for split in SPLITS:
            extra = ["zebra x ."] if split == "test" else []
            (folder / f"{split}.{language}").write_text(
                "".join(f"{line}\n" for line in lines + extra), encoding="utf-8"
            )
    arguments = ["--source-lang", "de", "--target-lang", "en", "--joined-dictionary", "--destdir", folder / "data"]
    arguments += [part for split in SPLITS for part in (f"--{split}pref", folder / split)]
    with restore_global_state():
        from fairseq import options
        from fairseq_cli import preprocess

        preprocess.main(options.get_preprocessing_parser().parse_args(list(map(str, arguments))))
    return folder / "data"


@pytest.fixture
def folder(fairseqs_folder, tmp_path):
    return shutil.copytree(fairseqs_folder, tmp_path / "data")


def make_data(folder, **options):
    defaults = {"source_lang": "de", "target_lang": "en", "max_tokens": 20}
    return TranslationDataModule(str(folder), **{**defaults, **options})


def test_any_folder_of_fairseq_preprocess_works(folder):
    data = make_data(folder)
    arguments = data.model_arguments()
    assert arguments["source_dictionary"] is arguments["target_dictionary"]
    assert data.texts("train").reference == ["a small dog.", "the cat sleeps.", "the dog sleeps.", 'this is "new".']
    assert data.texts("train").source[1] == "die katze schläft."
    assert data.texts("train").tokenized_reference[1:] == [
        "the cat sleeps .", "the dog sleeps .", "this is &quot; new &quot; ."
    ]  # fmt: skip
    assert data.texts("test").tokenized_reference[-1] == "<<unk>> <<unk>> ."
    for loader, split, count in ((data.train_dataloader(), "train", 4), (data.test_dataloader(), "test", 5)):
        batches = list(loader)
        assert sorted(torch.cat([batch["id"] for batch in batches]).tolist()) == list(range(count))
        for batch in batches:
            for number, target in zip(batch["id"].tolist(), batch["target"], strict=True):
                expected = data.texts(split).tokenized_reference[number].replace("<<unk>>", "<unk>")
                assert data.preprocessor.decode(target) == expected


def test_the_other_direction(folder):
    data = make_data(folder, source_lang="en", target_lang="de")
    assert data.texts("val").source[1] == "the cat sleeps."
    assert data.texts("val").reference[1] == "die katze schläft."


def test_untokenised_text_and_settings_of_the_preparation(folder):
    (folder / "raw").mkdir()
    for language, lines in RAW.items():
        (folder / "raw" / f"test.{language}").write_text("\n".join([*lines, "Zebra x."]), encoding="utf-8")
    (folder / "bpe.codes").write_text("#version: 0.2\nh u\nhu n\nhun d</w>\n")
    (folder / "preparation.json").write_text(json.dumps({"lowercase": True, "split_hyphens": True}))
    data = make_data(folder, lowercase=False)
    assert data.preprocessor.lowercase
    assert data.preprocessor.encode_source("Der-Hund") == ["d@@", "e@@", "r", "@@@", "-@@", "@", "hund"]
    assert data.texts("test").source == [*RAW["de"], "Zebra x."]
    assert data.texts("test").reference == [*RAW["en"], "Zebra x."]
    assert data.texts("test").tokenized_reference[0] == "a small dog ."
    assert data.texts("val").reference[0] == "a small dog."
    limited = make_data(folder, limit=2)
    texts = limited.texts("test")
    assert len(set(texts.reference)) == 2
    ids = torch.cat([batch["id"] for batch in limited.test_dataloader()])
    assert sorted(ids.tolist()) == [0, 1]
    for batch in limited.test_dataloader():
        for number, target in zip(batch["id"].tolist(), batch["target"], strict=True):
            words = limited.preprocessor.decode(target).replace("<unk> <unk>", "zebra x")
            assert limited.preprocessor.detokenize(words) == texts.reference[number].lower()
    (folder / "raw" / "test.de").write_text("one\n")
    with pytest.raises(ValueError, match=r"raw/test.de has 1 lines, the binary files of test 5"):
        make_data(folder).texts("test")


def cut_short(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def replace_by(source, target):
    return lambda folder: [
        shutil.copy(folder / f"{source}.{kind}", folder / f"{target}.{kind}") for kind in ("bin", "idx")
    ]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "dict.en.txt").unlink(), r"dict.en.txt is no dictionary of fairseq \(.*No such file"),
        (cut_short("dict.en.txt", 10), "dict.en.txt is no dictionary of fairseq"),
        (
            lambda folder: (folder / "valid.de-en.en.bin").unlink(),
            "has no split valid: neither valid.de-en.* nor valid",
        ),
        (cut_short("train.de-en.de.idx", 10), "train.de-en.de.bin or .idx is damaged"),
        (cut_short("train.de-en.de.bin", 10), "train.de-en.de.bin or .idx is damaged"),
        (lambda folder: (folder / "preparation.json").write_text("{"), "preparation.json is damaged"),
        (lambda folder: (folder / "bpe.codes").write_text("a b c\n"), "line 1 of the BPE codes holds no two subwords"),
        (replace_by("test.de-en.de", "train.de-en.de"), "train.de-en.de.bin has 5 sentences and .*en.bin 4"),
    ],
)
def test_damage_is_told_in_one_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        make_data(folder).setup()
    assert "\n" not in str(caught.value)


def test_a_given_vocabulary_reads_other_sentences_in_the_same_words(folder):
    (folder / "bpe.codes").write_text("#version: 0.2\nh u\nhu n\nhun d</w>\n")
    (folder / "preparation.json").write_text(json.dumps({"lowercase": True, "split_hyphens": True}))
    trained = make_data(folder).preprocessor
    for name in ("bpe.codes", "preparation.json"):  # as of a folder that fairseq-preprocess alone has made
        (folder / name).unlink()
    for path in (*folder.glob("train*"), *folder.glob("valid*")):
        path.unlink()
    data = make_data(folder)
    data.use_preprocessor(trained)
    assert data.texts("test").tokenized_reference[0] == "a small dog ."
    assert data.preprocessor.lowercase
    with pytest.raises(ValueError, match="has no split train"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda trained: replace(trained, lowercase=True), "lowercase=False instead of True"),
        (
            lambda trained: replace(trained, codes="#version: 0.2\nh u\n"),
            "BPE codes: 'h o' in place 1 instead of 'h u'",
        ),
        (lambda trained: replace(trained, source_dictionary=Dictionary()), "source dictionary: '.' in place 4 instead"),
    ],
)
def test_sentences_in_other_words_are_refused(folder, change, difference):
    (folder / "bpe.codes").write_text("#version: 0.2\nh o\n")
    (folder / "preparation.json").write_text(json.dumps({"lowercase": False}))
    data = make_data(folder)
    data.use_preprocessor(change(make_data(folder).preprocessor))
    with pytest.raises(ValueError, match="was prepared with another vocabulary than the model's") as caught:
        data.test_dataloader()
    assert difference in str(caught.value)
    assert "\n" not in str(caught.value)


def test_subwords_of_unknown_merges_are_not_made_of_text(folder, tmp_path):
    """Words would become unknown ones without a word about it."""
    trained = make_data(folder).preprocessor
    for language in ("de", "en"):
        (tmp_path / f"test.{language}").write_text("".join(f"{line}\n" for line in RAW[language]), encoding="utf-8")
    data = make_data(tmp_path)
    data.use_preprocessor(trained)
    with pytest.raises(ValueError, match="subwords but came without bpe"):
        data.test_dataloader()
