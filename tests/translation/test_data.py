import itertools
import os
from pathlib import Path

import datasets
import pytest
import torch

from un.translation.data import TranslationDataModule

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("UN_DATA", ROOT.parent / "shared" / "data")) / "multi30k"
COUNTS = {"train": 40, "valid": 12, "test": 11}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keeps what `datasets` converts out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def make_sentences(split):
    """Sentences of many lengths; the number of the pair is told by its words."""
    german = [
        f"Der {split} Hund Nr. {number} sieht {'sehr ' * (number % 7)}gut aus." for number in range(COUNTS[split])
    ]
    english = [f"The {split} dog no {number} looks {'very ' * (number % 5)}good." for number in range(COUNTS[split])]
    return {"de": german, "en": english}


@pytest.fixture
def text_folder(tmp_path):
    """`train`, `valid` and `test` of both languages."""
    folder = tmp_path / "text"
    folder.mkdir()
    for split in COUNTS:
        for language, lines in make_sentences(split).items():
            (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def make_data(path=None, **options):
    defaults = {"source_lang": "de", "target_lang": "en", "max_tokens": 60, "val_split": "valid", "bpe_merges": 30}
    return TranslationDataModule(None if path is None else str(path), **{**defaults, **options})


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
    texts, seen, unknown = data.texts("train"), [], 0
    assert (texts.source, texts.reference) == (make_sentences("train")["de"], make_sentences("train")["en"])
    for batch in data.train_dataloader():
        tokens = batch["net_input"]["src_tokens"]
        assert max(tokens.numel(), batch["target"].numel()) <= 60
        assert batch["ntokens"] == batch["target"].ne(dictionary.pad()).sum()
        assert tokens[:, -1].eq(dictionary.eos()).all()  # padded on the left
        for number, target in zip(batch["id"].tolist(), batch["target"], strict=True):
            seen.append(number)
            words = data.preprocessor.decode(target)
            assert words == texts.tokenized_reference[number]
            raw = texts.reference[number]
            assert data.preprocessor.detokenize(words) == (raw.lower() if lowercase else raw)
            unknown += int(target.eq(dictionary.unk()).sum())
    assert (sorted(seen), unknown) == (list(range(40)), 0)


def test_evaluation_loaders_see_every_pair(text_folder):
    data = make_data(text_folder)
    for loader, split in ((data.val_dataloader(), "valid"), (data.test_dataloader(), "test")):
        ids = torch.cat([batch["id"] for batch in loader])
        assert sorted(ids.tolist()) == list(range(COUNTS[split]))
        assert same(loader, loader)


def test_dictionaries_of_their_own(text_folder):
    arguments = make_data(text_folder, joined_dictionary=False, bpe_merges=None).model_arguments()
    source, target = arguments["source_dictionary"], arguments["target_dictionary"]
    assert "Hund" in source
    assert "Hund" not in target
    assert "dog" in target


def test_parquet_folder_gives_the_pairs_that_were_written(tmp_path, text_folder):
    folder = tmp_path / "parquet"
    folder.mkdir()
    for split in COUNTS:
        name = "validation" if split == "valid" else split
        datasets.Dataset.from_dict(make_sentences(split)).to_parquet(folder / f"{name}.parquet")
    data, plain = make_data(folder, val_split="validation"), make_data(text_folder)
    for split in ("train", "val", "test"):
        assert data.texts(split) == plain.texts(split)
    assert same(data.train_dataloader(), plain.train_dataloader())


def test_batch_depends_on_seed_epoch_and_number_only(text_folder):
    data = make_data(text_folder)
    loader = data.train_dataloader()
    whole = collect(loader, 1)
    torch.rand(1)
    assert same(whole, collect(make_data(text_folder).train_dataloader(), 1))
    assert [batch["id"].tolist() for batch in whole] != [batch["id"].tolist() for batch in collect(loader, 0)]
    for start in (1, len(whole)):
        resumed = make_data(text_folder)
        resumed.load_state_dict({"train_loader": {"epoch": 1, "batch": start, "num_batches": len(whole)}})
        resumed_loader = resumed.train_dataloader()
        assert same(whole[start:], collect(resumed_loader, 1))
        assert same(whole, collect(resumed_loader, 1))


def test_loading_leaves_the_global_random_state_alone(text_folder):
    data = make_data(text_folder)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(data.train_dataloader())
    assert torch.equal(torch.rand(3), expected)


def test_workers_change_nothing(text_folder):
    alone, helped = (make_data(text_folder, num_workers=count) for count in (0, 1))
    assert same(alone.train_dataloader(), helped.train_dataloader())


@pytest.mark.parametrize("languages", [("de", "en"), ("en", "de"), ("fr", "it")])
def test_generated_pairs_for_any_languages(languages):
    source, target = languages
    data = make_data(None, source_lang=source, target_lang=target, limit=9, batch_size=4, bpe_merges=6000)
    assert [len(data.texts(split).source) for split in ("train", "val", "test")] == [9, 9, 9]
    assert max(len(batch["id"]) for batch in data.train_dataloader()) <= 4
    assert data.texts("train").source != make_data(None).texts("test").source[:9]


def test_limit_draws_by_seed(text_folder):
    first, again, other = (make_data(text_folder, limit=10, seed=seed).texts("train") for seed in (0, 0, 1))
    assert first == again != other
    assert first == make_data(text_folder, limit=10, seed=1, split_seed=0).texts("train")
    assert len(first.source) == 10
    assert set(first.source) < set(make_sentences("train")["de"])


def test_empty_training_lines_are_left_out_and_told(text_folder, caplog):
    lines = make_sentences("train")["de"]
    lines[7], lines[9] = "", " \t"
    (text_folder / "train.de").write_text("\r\n".join(lines), encoding="utf-8-sig")
    caplog.set_level("INFO")
    texts = make_data(text_folder).texts("train")
    assert len(texts.source) == 38
    assert texts.source[:8] == [*lines[:7], lines[8]]
    assert "2 pairs with an empty side are left out" in caplog.text


def test_unusual_separators_end_no_line(text_folder):
    lines = make_sentences("train")["de"]
    lines[3] = "Ein\u2028Hund\x0bund\x85mehr"
    (text_folder / "train.de").write_text("\n".join(lines), encoding="utf-8")
    assert make_data(text_folder).texts("train").source == lines


def test_long_sentences_are_left_out_of_training_and_refused_in_evaluation(text_folder, caplog):
    lines = make_sentences("train")["en"]
    lines[4] = "very " * 100
    (text_folder / "train.en").write_text("\n".join(lines), encoding="utf-8")
    data = make_data(text_folder, bpe_merges=None)
    ids = itertools.chain(*(batch["id"].tolist() for batch in data.train_dataloader()))
    assert sorted(ids) == [number for number in range(40) if number != 4]
    assert "1 of 40 pairs of train of" in caplog.text
    assert "(longest 101, first in line 5) and are left out" in caplog.text
    (text_folder / "test.en").write_text("\n".join(lines[:11]), encoding="utf-8")
    data = make_data(text_folder, bpe_merges=None, max_tokens=500, max_target_positions=100)
    with pytest.raises(
        ValueError, match=r"1 of 11 .* more than 500 source or 100 target .* first in line 5\); shorten"
    ):
        data.test_dataloader()
    with pytest.raises(ValueError, match="40 of 40 pairs of train of"):
        make_data(text_folder, max_tokens=3).train_dataloader()


def write_raw(name, content):
    def spoil(folder):
        (folder / name).write_bytes(content)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (write_raw("test.en", b"one\ntwo\n"), "test.de has 11 lines and test.en 2; line n of one must translate"),
        (write_raw("train.en", b""), "train.en is empty"),
        (
            write_raw("valid.de", b"gut\nsch\xf6n\n"),
            r"valid.de is not UTF-8: byte 0xf6 at offset 7 \(line 2\); convert",
        ),
        (
            lambda folder: (folder / "valid.en").unlink(),
            "valid.en: no such file; the folder holds test.de, test.en, tr",
        ),
    ],
)
def test_bad_files_are_told_in_one_line(text_folder, spoil, message):
    spoil(text_folder)
    with pytest.raises(ValueError, match=message) as caught:
        make_data(text_folder).setup()
    assert "\n" not in str(caught.value)
    assert str(text_folder) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source_lang": "xx"}, "data.source_lang='xx' is no language code"),
        ({"target_lang": "english"}, "data.target_lang='english' is no language code; did you mean 'en'"),
        ({"target_lang": "de"}, "data.source_lang and data.target_lang are both 'de'"),
        ({"max_tokens": 0}, "data.max_tokens=0 must be at least 1"),
        ({"bpe_merges": -1}, "data.bpe_merges=-1 must be at least 1"),
        ({"limit": 0}, "data.limit=0 must be at least 1"),
        ({"split_seed": -1}, "data.split_seed=-1 must be at least 0"),
    ],
)
def test_bad_options_are_told_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        make_data(**options)


def test_bad_data_sets_are_told_in_one_line(tmp_path):
    folder = tmp_path / "parquet"
    folder.mkdir()
    for split in ("train", "test"):
        datasets.Dataset.from_dict({"de": ["gut"], "fr": ["bon"]}).to_parquet(folder / f"{split}.parquet")
    with pytest.raises(ValueError, match=r"no column 'en' in train of .*; there are de, fr"):
        make_data(folder, val_split="test").setup()
    with pytest.raises(ValueError, match=r"no split 'valid' in .*; there are train, test"):
        make_data(folder, target_lang="fr").setup()
    datasets.Dataset.from_dict({"de": ["gut", None], "fr": ["bon", "x"]}).to_parquet(folder / "test.parquet")
    with pytest.raises(ValueError, match=r"column 'de' of test of .* must hold text, but row 1 holds None"):
        make_data(folder, target_lang="fr", val_split="test").setup()
    with pytest.raises(ValueError, match=r"data.path='no/such/folder': no such folder"):
        make_data("no/such/folder").setup()


@pytest.mark.slow  # half a minute of learning merges on a busy machine
@pytest.mark.skipif(not REAL.is_dir(), reason="Multi30k is not there")
def test_multi30k_gives_the_vocabulary_of_the_first_measurements():
    data = make_data(REAL, val_split="validation", lowercase=True, bpe_merges=6000, max_tokens=2048)
    assert len(data.model_arguments()["source_dictionary"]) == 5984
    assert [len(data.texts(split).source) for split in ("train", "val", "test")] == [29_000, 1014, 1000]
    assert sum(len(batch["id"]) for batch in data.train_dataloader()) == 29_000


def spoil_training_text(folder):
    """Other words, more of them."""
    for language in ("de", "en"):
        (folder / f"train.{language}").write_text("eins zwei drei vier zwei drei\n" * 50, encoding="utf-8")


def remove_training_text(folder):
    for path in (*folder.glob("train.*"), *folder.glob("valid.*")):
        path.unlink()


@pytest.mark.parametrize("change", [spoil_training_text, remove_training_text])
def test_a_given_vocabulary_needs_no_training_text(text_folder, change):
    trained = make_data(text_folder)
    expected = list(trained.test_dataloader())
    change(text_folder)
    data = make_data(text_folder)
    data.use_preprocessor(trained.preprocessor)
    data.setup("test")
    assert same(data.test_dataloader(), expected)
    assert data.texts("test") == trained.texts("test")
    assert data.model_arguments() == trained.model_arguments()


def test_a_given_vocabulary_reads_parquet_without_training_text(tmp_path, text_folder):
    trained = make_data(text_folder)
    folder = tmp_path / "parquet"
    folder.mkdir()
    datasets.Dataset.from_dict(make_sentences("test")).to_parquet(folder / "test.parquet")
    data = make_data(folder)
    data.use_preprocessor(trained.preprocessor)
    assert same(data.test_dataloader(), trained.test_dataloader())


def test_examples_take_no_data(text_folder):
    trained = make_data(text_folder, max_source_positions=4)
    data = make_data("no/such/folder", max_source_positions=4)
    data.use_preprocessor(trained.preprocessor)
    first, again, other = (data.make_example_batch(seed) for seed in (0, 0, 1))
    assert same([first], [again])
    assert not same([first], [other])
    tokens, dictionary = first["net_input"]["src_tokens"], trained.preprocessor.source_dictionary
    assert tokens.shape == (8, 4)
    assert tokens[:, -1].eq(dictionary.eos()).all()
    assert tokens.eq(dictionary.pad()).any()  # sentences differ in length
    assert dictionary.unk() not in tokens
    assert first["target"].shape[1] <= 12
