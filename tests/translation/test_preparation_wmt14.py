"""WMT14 from small archives of the published layout, checked against the recipes written out here once more."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from sacremoses import MosesPunctNormalizer, MosesTokenizer
from subword_nmt.apply_bpe import BPE

from tests.translation.published_archives import (
    check_raw_text,
    join,
    make_sentences,
    run_script,
    write_archive,
    write_segments,
)
from un.translation.fairseq_library import Dictionary, data_utils
from un.translation.preparation.lines import read_lines
from un.translation.preparation.wmt14 import (
    FAIRSEQ,
    GOOGLE_RECIPE,
    POWERNORM,
    prepare,
    prepare_google,
    prepare_hub,
)

LANGUAGES = ("en", "de")
CORPORA = {"europarl-v7": 120, "commoncrawl": 90, "news-commentary-v12": 60, "news-commentary-v9": 40}  # their sizes
TESTS = {2012: 6, 2013: 6, 2014: 5}
LONG = 81  # words; more than PowerNorm allows, not too many for fairseq


def make_corpus(name: str, language: str) -> list[str]:
    """Sentences of one corpus; its number 30 is long, 99 has an odd ratio, 100 a carriage return inside."""
    lines = make_sentences(language, CORPORA[name], seed=len(name))
    lines[29] = " ".join(["word"] * LONG)
    if name == "europarl-v7":
        lines[98] = "eins" if language == "de" else "one two three four five six seven eight nine ten eleven"
        lines[99] = "Die „Haus-Tür“\rist grün." if language == "de" else "The “house-door”\ris green…"
    return lines


def make_test(language: str, year: int) -> list[str]:
    return [*make_sentences(language, TESTS[year] - 1, year), f"In {year} it’s „state-of-the-art“."]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wmt14") / "archives"
    folder.mkdir()
    for name in CORPORA:
        members = {f"training/{name}.de-en.{lang}": join(make_corpus(name, lang)) for lang in LANGUAGES}
        write_archive(folder / f"training-parallel-{name.replace('news-commentary', 'nc')}.tgz", members)
    members = {f"dev/newstest{year}.{lang}": join(make_test(lang, year)) for lang in LANGUAGES for year in (2012, 2013)}
    write_archive(folder / "dev.tgz", members)
    sides = (("src", "en"), ("ref", "de"), ("src", "de"))
    members = {
        f"test-full/newstest2014-deen-{side}.{lang}.sgm": write_segments(make_test(lang, 2014)) for side, lang in sides
    }
    write_archive(folder / "test-full.tgz", members)
    return folder


@pytest.fixture(scope="module")
def fairseq(published) -> Path:
    return prepare(published, published.with_name("fairseq"), replace(FAIRSEQ, merges=80))


@pytest.fixture(scope="module")
def powernorm(published) -> Path:
    return prepare(published, published.with_name("powernorm"), replace(POWERNORM, merges=80), "v9")


def concatenate(language: str, version: str) -> list[str]:
    names = ("europarl-v7", "commoncrawl", f"news-commentary-{version}")
    return [line for name in names for line in make_corpus(name, language)]


def tokenize_training(line: str, language: str) -> str:
    normalizer, tokenizer = MosesPunctNormalizer(language, perl_parity=True), MosesTokenizer(language)
    return tokenizer.tokenize(normalizer.normalize(line), aggressive_dash_splits=True, return_str=True)


def tokenize_test(line: str, language: str) -> str:
    line = line.replace("’", "'")
    return MosesTokenizer(language).tokenize(line, aggressive_dash_splits=True, return_str=True)


def split_words(product: Path, lines: list[str]) -> list[str]:
    with (product / "bpe.codes").open(encoding="utf-8") as codes:
        subwords = BPE(codes)
    return [subwords.process_line(line) for line in lines]


def read_product(product: Path, split: str, language: str) -> list[str]:
    """Lines in subwords as the binary files hold them."""
    dictionary = Dictionary.load(str(product / f"dict.{language}.txt"))
    prefix = product / f"{split}.en-de.{language}"
    return [dictionary.string(ids) for ids in data_utils.load_indexed_dataset(str(prefix), dictionary)]


def test_fairseq_holds_every_100th_pair_out_and_cleans_in_subwords(fairseq):
    raw = {lang: concatenate(lang, "v12") for lang in LANGUAGES}
    words = {lang: [tokenize_training(line, lang) for line in raw[lang]] for lang in LANGUAGES}
    split = {lang: split_words(fairseq, words[lang]) for lang in LANGUAGES}

    def is_kept(number: int) -> bool:
        lengths = sorted(len(split[lang][number].split()) for lang in LANGUAGES)
        return lengths[0] >= 1 and lengths[1] <= 250 and lengths[1] <= 1.5 * lengths[0]

    kept = [n for n in range(270) if is_kept(n)]
    train, valid = [n for n in kept if (n + 1) % 100], [n for n in kept if not (n + 1) % 100]
    assert 99 in valid
    assert 98 not in train
    assert 29 in train
    for lang in LANGUAGES:
        assert len(raw[lang]) == 270
        assert read_product(fairseq, "train", lang) == [split[lang][n] for n in train]
        assert list(read_lines(fairseq / f"raw/valid.{lang}")) == [raw[lang][n] for n in valid]
        found = list(read_lines(fairseq.with_name("fairseq.steps") / f"7-clean/valid.{lang}"))
        assert found == [split[lang][n] for n in valid]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_test_text_is_newstest2014_as_published_and_tokenised_without_normalising(fairseq, language):
    raw = list(read_lines(fairseq / f"raw/test.{language}"))
    assert raw == make_test(language, 2014)
    tokens = list(read_lines(fairseq.with_name("fairseq.steps") / f"3-tokens/test.{language}"))
    assert tokens == [tokenize_test(line, language) for line in raw]
    assert {"@-@", "„", "&apos;"} <= set(" ".join(tokens).replace("&apos;s", "&apos;").split())


def test_the_vocabulary_of_a_product_makes_its_test_ids_of_the_untokenised_text(fairseq):
    check_raw_text(fairseq, LANGUAGES)


def test_powernorm_cleans_in_words_and_validates_on_newstest2013(powernorm):
    words = {lang: [tokenize_training(line, lang) for line in concatenate(lang, "v9")] for lang in LANGUAGES}

    def is_kept(number: int) -> bool:
        lengths = sorted(len(words[lang][number].split()) for lang in LANGUAGES)
        return lengths[0] >= 1 and lengths[1] <= 80 and lengths[1] <= 9 * lengths[0]

    train = [n for n in range(len(words["en"])) if is_kept(n)]
    assert {29, 98} & set(train) == set()
    assert {97, 99} <= set(train)
    for lang in LANGUAGES:
        assert read_product(powernorm, "train", lang) == split_words(powernorm, [words[lang][n] for n in train])
        raw = make_test(lang, 2013)
        assert list(read_lines(powernorm / f"raw/valid.{lang}")) == raw
        found = list(read_lines(powernorm.with_name("powernorm.steps") / f"6-subwords/valid.{lang}"))
        assert found == split_words(powernorm, [tokenize_test(line, lang) for line in raw])


def test_the_set_of_google_is_binarised_as_it_is(tmp_path):
    names = ("train.tok.clean.bpe.32000", "newstest2013.tok.bpe.32000", "newstest2014.tok.bpe.32000")
    members = {f"{name}.{lang}": join(make_sentences(lang, 20, len(name))) for name in names for lang in LANGUAGES}
    members["bpe.32000"] = "#version: 0.2\nt h\n"
    members |= {f"newstest2014.{lang}": join([f"{n} raw" for n in range(20)]) for lang in LANGUAGES}
    archive = write_archive(tmp_path / "wmt16_en_de.tar.gz", members)
    product = prepare_google(archive, tmp_path / "product")
    for language in LANGUAGES:
        text = members[f"train.tok.clean.bpe.32000.{language}"]
        assert read_product(product, "train", language) == text.splitlines()
        assert (product / f"raw/test.{language}").read_text() == members[f"newstest2014.{language}"]
        assert not (product / f"raw/valid.{language}").exists()  # not in every copy of the archive
    assert (product / "bpe.codes").read_text() == members["bpe.32000"]
    assert json.loads((product / "preparation.json").read_text())["recipe"] == "google"
    cut = prepare_google(archive, tmp_path / "cut", replace(GOOGLE_RECIPE, words=12))
    assert len(Dictionary.load(str(cut / "dict.en.txt"))) == 16  # 12, padded to a multiple of 8
    assert any("<unk>" in line for line in read_product(cut, "train", "de"))


def test_rows_of_a_data_set_give_the_same_as_archives(tmp_path, powernorm):
    for split, year in {"train": None, "validation": 2013, "test": 2014}.items():
        columns = {lang: make_test(lang, year) if year else concatenate(lang, "v9") for lang in LANGUAGES}
        pairs = [dict(zip(columns, pair, strict=True)) for pair in zip(*columns.values(), strict=True)]
        datasets.Dataset.from_dict({"translation": pairs}).to_parquet(tmp_path / "rows" / f"{split}.parquet")
    product = prepare_hub(str(tmp_path / "rows"), tmp_path / "product", replace(POWERNORM, merges=80))
    for name in ("train.en-de.de.bin", "valid.en-de.en.bin", "test.en-de.de.bin", "dict.en.txt", "raw/valid.de"):
        assert (product / name).read_bytes() == (powernorm / name).read_bytes()


def test_a_data_set_without_a_split_is_refused(tmp_path):
    datasets.Dataset.from_dict({"de": ["a"], "en": ["b"]}).to_parquet(tmp_path / "rows" / "train.parquet")
    with pytest.raises(ValueError, match=r"no split 'test' in .*rows; there are train$"):
        prepare_hub(str(tmp_path / "rows"), tmp_path / "product")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--archives", "nowhere"], "no archive nowhere/training-parallel-europarl-v7.tgz; get https://www.statmt"),
        (["--google", "x.tgz"], "no archive x.tgz; get it with a browser from https://drive"),
        (["--google", "x.tgz", "--recipe", "fairseq"], "--recipe has no effect with --google"),
        (["--hub", "no such folder"], "no such folder is neither a folder nor a hub id that can be read"),
    ],
)
def test_the_program_reports_errors_in_one_line(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        run_script(monkeypatch, "prepare_wmt14.py", *arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_the_program_prepares_and_prints_checksums(tmp_path, monkeypatch, capsys, published, powernorm):
    options = ["--recipe", "powernorm", "--news-commentary", "v9", "--merges", 80]
    run_script(monkeypatch, "prepare_wmt14.py", "--archives", published, "--output", tmp_path / "powernorm", *options)
    record = json.loads((powernorm / "preparation.json").read_text())
    assert record == json.loads((tmp_path / "powernorm/preparation.json").read_text())
    assert f"  {record['files']['dict.de.txt']['sha256']}  dict.de.txt" in capsys.readouterr().out
