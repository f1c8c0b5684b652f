import itertools
import os
import shutil
from pathlib import Path

import datasets
import pytest
import torch

from tests.translation.tiny import TEXT_COUNTS, make_text
from un.translation.data import TranslationDataModule

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("UN_DATA", ROOT.parent / "shared" / "data")) / "multi30k"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keeps what `datasets` converts out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def own_folder(text_folder, tmp_path):
    """A copy of the text to spoil."""
    return shutil.copytree(text_folder, tmp_path / "text")


def make_data(path=None, **options):
    defaults = {"source_lang": "de", "target_lang": "en", "max_tokens": 60, "val_split": "valid", "bpe_merges": 30}
    return TranslationDataModule(None if path is None else str(path), **{**defaults, **options})


def write_parquet(folder, name, columns):
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns).to_parquet(folder / f"{name}.parquet")


def collect(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def same(left, right):
    return all(
        torch.equal(one["id"], other["id"])
        and torch.equal(one["target"], other["target"])
        and all(torch.equal(value, other["net_input"][name]) for name, value in one["net_input"].items())
        for one, other in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("lowercase", [False, True])
def test_ids_texts_and_batches_belong_together(text_folder, lowercase):
    data = make_data(text_folder, lowercase=lowercase)
    arguments = data.model_arguments()
    dictionary = arguments["target_dictionary"]
    assert arguments["source_dictionary"] is dictionary
    assert len(dictionary) % 8 == 0
    texts, seen = data.texts("train"), []
    assert (texts.source, texts.reference) == (make_text("train")["de"], make_text("train")["en"])
    for batch in data.train_dataloader():
        tokens = batch["net_input"]["src_tokens"]
        assert max(tokens.numel(), batch["target"].numel()) <= 60
        assert batch["ntokens"] == batch["target"].ne(dictionary.pad()).sum()
        assert tokens[:, -1].eq(dictionary.eos()).all()  # padded on the left
        assert dictionary.unk() not in batch["target"]
        for number, target in zip(batch["id"].tolist(), batch["target"], strict=True):
            seen.append(number)
            words = data.preprocessor.decode(target)
            assert words == texts.tokenized_reference[number]
            raw = texts.reference[number]
            assert data.preprocessor.detokenize(words) == (raw.lower() if lowercase else raw)
    assert sorted(seen) == list(range(40))


def test_each_side_may_have_a_dictionary_of_its_own(text_folder):
    arguments = make_data(text_folder, joined_dictionary=False, bpe_merges=None).model_arguments()
    source, target = arguments["source_dictionary"], arguments["target_dictionary"]
    assert ("Hund" in source, "Hund" in target, "dog" in target) == (True, False, True)


def test_parquet_folder_gives_the_pairs_that_were_written(tmp_path, text_data):
    for split in TEXT_COUNTS:
        name = "validation" if split == "valid" else split
        write_parquet(tmp_path / "parquet", name, make_text(split))
    data = make_data(tmp_path / "parquet", val_split="validation")
    for split in ("train", "val", "test"):
        assert data.texts(split) == text_data.texts(split)
    assert same(data.train_dataloader(), text_data.train_dataloader())


def test_batch_depends_on_seed_epoch_and_number_only(text_folder, text_data):
    loader = text_data.train_dataloader()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    whole = collect(loader, 1)
    assert torch.equal(torch.rand(3), expected)  # and the global random state is left alone
    assert [batch["id"].tolist() for batch in whole] != [batch["id"].tolist() for batch in collect(loader, 0)]
    for start, num_workers in ((1, 0), (len(whole), 1)):
        resumed = make_data(text_folder, num_workers=num_workers)
        resumed.load_state_dict({"train_loader": {"epoch": 1, "batch": start, "num_batches": len(whole)}})
        resumed_loader = resumed.train_dataloader()
        assert same(whole[start:], collect(resumed_loader, 1))
        assert same(whole, collect(resumed_loader, 1))


@pytest.mark.parametrize("languages", [("en", "de"), ("fr", "it")])
def test_generated_pairs_for_any_languages(languages):
    source, target = languages
    data = make_data(None, source_lang=source, target_lang=target, limit=9, batch_size=4, bpe_merges=6000)
    assert [len(data.texts(split).source) for split in ("train", "val", "test")] == [9, 9, 9]
    assert max(len(batch["id"]) for batch in data.train_dataloader()) <= 4


def test_limit_draws_by_seed(text_folder):
    first, other = (make_data(text_folder, limit=10, seed=seed).texts("train") for seed in (0, 1))
    assert first != other
    assert first == make_data(text_folder, limit=10, seed=1, split_seed=0).texts("train")
    assert len(first.source) == 10
    assert set(first.source) < set(make_text("train")["de"])


def test_lines_end_in_line_feeds_only_and_empty_ones_are_left_out_of_training(own_folder, caplog):
    lines = make_text("train")["de"]
    lines[3], lines[7], lines[9] = "Ein\u2028Hund\x0bund\x85mehr", "", " \t"
    (own_folder / "train.de").write_text("\r\n".join(lines), encoding="utf-8-sig")
    caplog.set_level("INFO")
    texts = make_data(own_folder).texts("train")
    assert texts.source == [*lines[:7], lines[8], *lines[10:]]
    assert "2 pairs with an empty side are left out" in caplog.text


def test_long_sentences_are_left_out_of_training_and_refused_in_evaluation(own_folder, caplog):
    lines = make_text("train")["en"]
    lines[4] = "very " * 100
    (own_folder / "train.en").write_text("\n".join(lines), encoding="utf-8")
    data = make_data(own_folder, bpe_merges=None)
    ids = itertools.chain(*(batch["id"].tolist() for batch in data.train_dataloader()))
    assert sorted(ids) == [number for number in range(40) if number != 4]
    assert "1 of 40 pairs of train of" in caplog.text
    assert "(longest 101, first in line 5) and are left out" in caplog.text
    (own_folder / "test.en").write_text("\n".join(lines[:11]), encoding="utf-8")
    data = make_data(own_folder, bpe_merges=None, max_tokens=500, max_target_positions=100)
    with pytest.raises(ValueError, match=r"1 of 11 .* than 500 source or 100 target .* first in line 5\); shorten"):
        data.test_dataloader()
    with pytest.raises(ValueError, match="40 of 40 pairs of train of"):
        make_data(own_folder, max_tokens=3).train_dataloader()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test.en", b"one\ntwo\n", "unequal numbers of lines: .*test.de 11, .*test.en 2"),
        ("valid.de", b"gut\nsch\xf6n\n", "valid.de is not UTF-8: byte 0xf6 in line 2; convert"),
        ("valid.en", None, "no file .*valid.en"),
    ],
)
def test_bad_files_are_reported_in_one_line(own_folder, name, content, message):
    (own_folder / name).unlink()
    if content is not None:
        (own_folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        make_data(own_folder).setup()
    assert "\n" not in str(caught.value)
    assert str(own_folder) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source_lang": "xx"}, "data.source_lang='xx' is not a language code"),
        ({"target_lang": "de"}, "data.source_lang and data.target_lang are both 'de'"),
        ({"max_tokens": 0}, "data.max_tokens=0 must be at least 1"),
        ({"split_seed": -1}, "data.split_seed=-1 must be at least 0"),
    ],
)
def test_bad_options_are_reported_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        make_data(**options)


def test_bad_data_sets_are_reported_in_one_line(tmp_path):
    folder = tmp_path / "parquet"
    for split in ("train", "test"):
        write_parquet(folder, split, {"de": ["gut"], "fr": ["bon"]})
    with pytest.raises(ValueError, match=r"no column 'en' in train of .*; there are de, fr"):
        make_data(folder, val_split="test").setup()
    with pytest.raises(ValueError, match=r"no split 'valid' in .*; there are train, test"):
        make_data(folder, target_lang="fr").setup()
    write_parquet(folder, "test", {"de": ["gut", None], "fr": ["bon", "x"]})
    with pytest.raises(ValueError, match=r"column 'de' of test of .* must hold text, but row 1 holds None"):
        make_data(folder, target_lang="fr", val_split="test").setup()
    with pytest.raises(ValueError, match=r"data.path='no/such/folder' \(as a folder /.*\): no such folder"):
        make_data("no/such/folder").setup()


@pytest.mark.slow  # half a minute of learning merges on a busy machine
@pytest.mark.skipif(not REAL.is_dir(), reason="Multi30k is not there")
def test_multi30k_gives_the_vocabulary_of_the_first_measurements():
    data = make_data(REAL, val_split="validation", lowercase=True, bpe_merges=6000, max_tokens=2048)
    assert len(data.model_arguments()["source_dictionary"]) == 5984
    assert [len(data.texts(split).source) for split in ("train", "val", "test")] == [29_000, 1014, 1000]
    assert sum(len(batch["id"]) for batch in data.train_dataloader()) == 29_000


def test_a_given_vocabulary_needs_no_training_text(own_folder, text_data):
    for path in (*own_folder.glob("train.*"), *own_folder.glob("valid.*")):
        path.unlink()
    data = make_data(own_folder)
    data.use_preprocessor(text_data.preprocessor)
    data.setup("test")
    batches = list(data.test_dataloader())
    assert same(batches, text_data.test_dataloader())
    assert sorted(torch.cat([batch["id"] for batch in batches]).tolist()) == list(range(TEXT_COUNTS["test"]))
    assert data.texts("test") == text_data.texts("test")
    assert data.model_arguments() == text_data.model_arguments()


def test_examples_take_no_data(text_data):
    data = make_data("no/such/folder", max_source_positions=4)
    data.use_preprocessor(text_data.preprocessor)
    first, again, other = (data.make_example_batch(seed) for seed in (0, 0, 1))
    assert same([first], [again])
    assert not same([first], [other])
    tokens, dictionary = first["net_input"]["src_tokens"], text_data.preprocessor.source_dictionary
    assert tokens.shape == (8, 4)
    assert tokens[:, -1].eq(dictionary.eos()).all()
    assert tokens.eq(dictionary.pad()).any()  # sentences differ in length
    assert dictionary.unk() not in tokens
    assert first["target"].shape[1] <= 12
