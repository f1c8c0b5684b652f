import json
import shutil
from dataclasses import replace

import pytest
import torch

from un.translation.data import TranslationDataModule
from un.translation.fairseq_library import restore_global_state

SPLITS = {"train": "train", "valid": "val", "test": "test"}
PIECES = {
    "de": ["ein klein@@ er hund .", "die katz@@ e schläft .", "der hund schläft .", "das ist &quot; neu &quot; ."],
    "en": ["a small dog .", "the cat sleep@@ s .", "the dog sleep@@ s .", "this is &quot; new &quot; ."],
}
RAW = {
    "de": ["Ein kleiner Hund.", "Die Katze schläft.", "Der Hund schläft.", 'Das ist "neu".', "Zebra x."],
    "en": ["A small dog.", "The cat sleeps.", "The dog sleeps.", 'This is "new".', "Zebra x."],
}
CODES = "#version: 0.2\nh u\nhu n\nhun d</w>\n"


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def fairseqs_folder(tmp_path_factory):
    """What `fairseq-preprocess` makes of a few lines; `test` has words that `train` lacks."""
    folder = tmp_path_factory.mktemp("prepared")
    for language, lines in PIECES.items():
        for split in SPLITS:
            write(folder / f"{split}.{language}", [*lines, "zebra x ."] if split == "test" else lines)
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


def keep_codes(folder, codes=CODES, **settings):
    """Adds what the preparation scripts keep."""
    (folder / "bpe.codes").write_text(codes)
    (folder / "preparation.json").write_text(json.dumps(settings))


def make_data(folder, **options):
    defaults = {"source_lang": "de", "target_lang": "en", "max_tokens": 20}
    return TranslationDataModule(str(folder), **{**defaults, **options})


def test_any_folder_of_fairseq_preprocess_works(fairseqs_folder):
    data = make_data(fairseqs_folder)
    arguments = data.model_arguments()
    assert arguments["source_dictionary"] is arguments["target_dictionary"]
    texts = data.texts("train")
    assert texts.reference == ["a small dog.", "the cat sleeps.", "the dog sleeps.", 'this is "new".']
    assert texts.source[1] == "die katze schläft."
    assert texts.tokenized_reference[2:] == ["the dog sleeps .", "this is &quot; new &quot; ."]
    assert data.texts("test").tokenized_reference[-1] == "<<unk>> <<unk>> ."
    batches = list(data.test_dataloader())
    assert sorted(torch.cat([batch["id"] for batch in batches]).tolist()) == list(range(5))
    for batch in batches:
        for number, target in zip(batch["id"].tolist(), batch["target"], strict=True):
            expected = data.texts("test").tokenized_reference[number].replace("<<unk>>", "<unk>")
            assert data.preprocessor.decode(target) == expected
    turned = make_data(fairseqs_folder, source_lang="en", target_lang="de").texts("val")
    assert (turned.source[1], turned.reference[1]) == ("the cat sleeps.", "die katze schläft.")


def test_untokenised_text_and_settings_of_the_preparation(folder):
    (folder / "raw").mkdir()
    for language, lines in RAW.items():
        write(folder / "raw" / f"test.{language}", lines)
    keep_codes(folder, lowercase=True, split_hyphens=True)
    data = make_data(folder, lowercase=False)
    preprocessor = data.preprocessor
    assert preprocessor.lowercase
    words = preprocessor.split_words("Der-Hund", "de")
    assert preprocessor.split_pieces(words) == ["d@@", "e@@", "r", "@@@", "-@@", "@", "hund"]
    texts = data.texts("test")
    assert (texts.source, texts.reference) == (RAW["de"], RAW["en"])
    assert texts.tokenized_reference[0] == "a small dog ."
    assert data.texts("val").reference[0] == "a small dog."
    limited = make_data(folder, limit=2)
    texts, seen = limited.texts("test"), []
    for batch in limited.test_dataloader():
        for number, target in zip(batch["id"].tolist(), batch["target"], strict=True):
            words = preprocessor.decode(target).replace("<unk> <unk>", "zebra x")
            assert preprocessor.detokenize(words) == texts.reference[number].lower()
            seen.append(number)
    assert sorted(seen) == [0, 1]
    for language in RAW:
        write(folder / "raw" / f"test.{language}", ["one"])
    with pytest.raises(ValueError, match=r"raw/test.de has 1 lines, the binary files of test 5"):
        make_data(folder).texts("test")


def cut_short(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:10])


def copy_test_over_train(folder):
    for kind in ("bin", "idx"):
        shutil.copy(folder / f"test.de-en.de.{kind}", folder / f"train.de-en.de.{kind}")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "dict.en.txt").unlink(), r"dict.en.txt is not a dictionary of fairseq \(.*No such"),
        (lambda folder: (folder / "valid.de-en.en.bin").unlink(), "no split valid: neither valid.de-en.* nor valid"),
        (cut_short("train.de-en.de.idx"), "train.de-en.de.bin or .idx is damaged"),
        (cut_short("train.de-en.de.bin"), "train.de-en.de.bin or .idx is damaged"),
        (copy_test_over_train, "train.de-en.de.bin has 5 sentences and .*en.bin 4"),
    ],
)
def test_damage_is_reported_in_one_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        make_data(folder).setup()
    assert "\n" not in str(caught.value)


def test_a_given_vocabulary_reads_other_sentences_in_the_same_words(folder):
    keep_codes(folder, lowercase=True, split_hyphens=True)
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


def test_sentences_in_other_words_are_refused(folder):
    keep_codes(folder, lowercase=False)
    data = make_data(folder)
    data.use_preprocessor(replace(data.preprocessor, lowercase=True))
    with pytest.raises(ValueError, match=r"with another vocabulary than the model's \(lowercase=False instead of True"):
        data.test_dataloader()


def test_subwords_of_unknown_merges_are_not_made_of_text(fairseqs_folder, tmp_path):
    """Words would silently become unknown ones."""
    for language, lines in RAW.items():
        write(tmp_path / f"test.{language}", lines)
    data = make_data(tmp_path)
    data.use_preprocessor(make_data(fairseqs_folder).preprocessor)
    with pytest.raises(ValueError, match="subwords but came without bpe"):
        data.test_dataloader()
