"""IWSLT14 from a small archive of the published layout, checked against the recipe written out here once more."""

import hashlib
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from sacremoses import MosesTokenizer
from subword_nmt.learn_bpe import learn_bpe

from tests.translation.published_archives import (
    check_raw_text,
    join,
    make_sentences,
    run_script,
    write_archive,
    write_segments,
)
from un.translation.fairseq_library import restore_global_state
from un.translation.preparation import pipeline
from un.translation.preparation.binarization import binarize
from un.translation.preparation.iwslt14 import RECIPE, prepare
from un.translation.preparation.lines import read_lines
from un.translation.prepared import PreparedFolder

SETS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
LANGUAGES = RECIPE.languages
MERGES = 60
PAIRS = 120
BAD = {  # position in the training text -> German and English side that cleaning drops
    10: ("", "an empty source side."),
    30: ("eins zwei drei vier fünf sechs", "too short."),
    50: ("ja " * 176, "yes " * 176),
}


def tag(language: str) -> list[str]:
    """Training lines with metadata around them; ’ occurs in the text."""
    lines = make_sentences(language, PAIRS, seed=0)
    for position, pair in BAD.items():
        lines[position] = pair[LANGUAGES.index(language)]
    lines[70] = "Das ist Toms’ Haus-Tür." if language == "de" else "This is Tom’s house door."
    lines[1] = f"<title>{lines[1]}</title>"
    lines[2] = f"<description>{lines[2]}</description>"
    return ["<url>http://example.org</url>", "<keywords>a, b</keywords>", "<talkid>3</talkid>", *lines]


def make_members() -> dict[str, str]:
    members = {f"de-en/train.tags.de-en.{language}": join(tag(language)) for language in LANGUAGES}
    for seed, name in enumerate((*SETS, "TED.tst2013"), 1):
        for language in LANGUAGES:
            sentences = [*make_sentences(language, 3, seed), f"{name} ends’s here"]
            members[f"de-en/IWSLT14.{name}.de-en.{language}.xml"] = write_segments(sentences)
    return members


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return write_archive(tmp_path_factory.mktemp("iwslt14") / "de-en.tgz", make_members())


@pytest.fixture(scope="module")
def prepared(archive) -> Path:
    return prepare(archive, archive.with_name("prepared"), replace(RECIPE, merges=MERGES))


def read_step(prepared: Path, step: str, name: str) -> list[str]:
    return list(read_lines(prepared.with_name("prepared.steps") / step / name))


def clean_by_hand(language: str) -> tuple[list[str], list[str]]:
    """Training text after cleaning: tokenised and lower-cased; as it was."""
    tokenizer = MosesTokenizer(language)
    raw = [line.replace("<title>", "").replace("</title>", "") for line in tag(language)[3:]]
    raw = [line.replace("<description>", "").replace("</description>", "") for line in raw]
    raw = [line for position, line in enumerate(raw) if position not in BAD]
    return [tokenizer.tokenize(line, return_str=True).lower() for line in raw], raw


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_23rd_clean_pair_is_validation_and_the_rest_training(prepared, language):
    tokens, raw = clean_by_hand(language)
    held = range(22, len(tokens), 23)
    assert len(held) == 5
    assert read_step(prepared, "4-divided", f"valid.{language}") == [tokens[i] for i in held]
    training = [line for i, line in enumerate(tokens) if i not in held]
    assert read_step(prepared, "4-divided", f"train.{language}") == training
    assert list(read_lines(prepared / f"raw/valid.{language}")) == [raw[i] for i in held]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_test_set_is_five_sets_in_order(prepared, language):
    raw = list(read_lines(prepared / f"raw/test.{language}"))
    assert raw[3::4] == [f"{name} ends's here" for name in SETS]
    assert raw[:3] == make_sentences(language, 3, seed=1)
    tokenizer = MosesTokenizer(language)
    expected = [tokenizer.tokenize(line, return_str=True).lower() for line in raw]
    assert read_step(prepared, "4-divided", f"test.{language}") == expected


def test_merges_come_from_the_training_text_of_both_sides(prepared):
    codes, expected = (prepared / "bpe.codes").read_text(), StringIO()
    words = [line for language in LANGUAGES for line in read_step(prepared, "4-divided", f"train.{language}")]
    learn_bpe(words, expected, MERGES)
    assert codes == expected.getvalue()
    assert len(codes.splitlines()) == 1 + MERGES
    for split in ("train", "valid", "test"):
        pieces = read_step(prepared, "6-subwords", f"{split}.de")
        assert [line.replace("@@ ", "") for line in pieces] == read_step(prepared, "4-divided", f"{split}.de")


@pytest.mark.parametrize("joined", [True, False])
def test_the_binary_files_are_those_of_fairseq_preprocess(prepared, tmp_path, joined):
    with restore_global_state():
        from fairseq import options
        from fairseq_cli import preprocess

        text = prepared.with_name("prepared.steps") / "6-subwords"
        arguments = ["--source-lang", "de", "--target-lang", "en", "--destdir", str(tmp_path / "theirs")]
        arguments += ["--trainpref", f"{text}/train", "--validpref", f"{text}/valid", "--testpref", f"{text}/test"]
        arguments += ["--joined-dictionary"] if joined else []
        preprocess.main(options.get_preprocessing_parser().parse_args(arguments))
    theirs = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir() if path.suffix != ".log"}
    assert len(theirs) == 2 + 3 * 2 * 2
    ours = tmp_path / "ours"
    ours.mkdir()
    binarize(text, ours, LANGUAGES, joined=joined, workers=2)
    assert {name: (ours / name).read_bytes() for name in theirs} == theirs
    assert (theirs["dict.de.txt"] == theirs["dict.en.txt"]) is joined


def test_the_record_says_what_a_reader_needs(prepared):
    record = json.loads((prepared / "preparation.json").read_text())
    expected = {"data": "iwslt14_de_en", "source_lang": "de", "target_lang": "en", "lowercase": True, "merges": 60}
    expected |= {"map_apostrophes": True, "split_last_period": True, "dictionary": "joined", "split_hyphens": False}
    assert {key: record[key] for key in expected} == expected
    assert (record["counts"]["train"], record["counts"]["valid"], record["counts"]["test"]) == (112, 5, 20)
    codes = (prepared / "bpe.codes").read_bytes()
    assert record["files"]["bpe.codes"]["sha256"] == hashlib.sha256(codes).hexdigest()
    assert "raw/test.en" in record["files"]


def test_the_vocabulary_of_a_product_makes_its_test_ids_of_the_untokenised_text(prepared):
    check_raw_text(prepared, LANGUAGES)


def test_the_program_takes_the_options_of_other_recipes(archive, tmp_path, monkeypatch, capsys):
    options = ["--merges", 10, "--apostrophes", "keep", "--dictionary", "separate"]
    run_script(monkeypatch, "prepare_iwslt14.py", "--archive", archive, "--output", tmp_path / "prepared", *options)
    assert list(read_lines(tmp_path / "prepared/raw/test.en"))[3] == "TED.dev2010 ends’s here"
    german, english = ((tmp_path / f"prepared/dict.{language}.txt").read_bytes() for language in LANGUAGES)
    assert german != english
    assert f"  {hashlib.sha256(english).hexdigest()}  dict.en.txt" in capsys.readouterr().out


def test_a_damaged_archive_stops_the_preparation(tmp_path):
    members = make_members()
    members["de-en/train.tags.de-en.en"] += "one more\n"
    with pytest.raises(ValueError, match=r"unequal numbers of lines: .*train.de 120, .*train.en 121"):
        prepare(write_archive(tmp_path / "de-en.tgz", members), tmp_path / "prepared")
    del members["de-en/IWSLT14.TEDX.dev2012.de-en.en.xml"]
    with pytest.raises(ValueError, match=r"no IWSLT14\.TEDX\.dev2012\.de-en\.en\.xml in .*de-en\.tgz"):
        prepare(write_archive(tmp_path / "de-en.tgz", members), tmp_path / "prepared")


def test_only_what_is_missing_or_was_changed_is_repeated(archive, tmp_path, monkeypatch, capsys):
    def run(merges=MERGES):
        """Names of the steps that ran."""
        capsys.readouterr()
        prepare(archive, tmp_path / "prepared", replace(RECIPE, merges=merges))
        lines = capsys.readouterr().out.splitlines()
        return [line.removesuffix(": running") for line in lines if line.endswith(": running")]

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "split_words", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert not (tmp_path / "prepared").exists()
    assert run() == ["6-subwords", "prepared"]
    assert not list(tmp_path.rglob("*.partial"))
    assert run() == []
    (tmp_path / "prepared.steps/4-divided/train.de").write_text("a")
    assert run() == ["4-divided"]
    assert run(merges=20) == ["5-merges", "6-subwords", "prepared"]


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_folder_of_somebody_else_is_not_replaced(archive, tmp_path):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"prepared exists and holds no preparation\.json"):
        prepare(archive, tmp_path / "prepared", replace(RECIPE, merges=MERGES))
    assert (tmp_path / "prepared/thesis.txt").read_text() == "years of work"


def test_the_program_reports_errors_in_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_script(monkeypatch, "prepare_iwslt14.py", "--archive", "nothing.tgz")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no archive nothing.tgz; get https://dl.fbaipublicfiles.com")


def test_the_data_module_reads_what_was_prepared(prepared):
    folder = PreparedFolder(prepared, LANGUAGES)
    preprocessor = folder.read_preprocessor(lowercase=False)
    test = folder.open_split("test", preprocessor, limit=None, seed=0).texts
    assert preprocessor.lowercase
    assert test.reference == list(read_lines(prepared / "raw/test.en"))
    assert test.source[3] == "TED.dev2010 ends's here"
    words = read_step(prepared, "4-divided", "train.en")[0]
    pieces = read_step(prepared, "6-subwords", "train.en")[0]
    assert " ".join(preprocessor.split_pieces(words)) == pieces
