"""IWSLT14 from a small archive of the published layout, checked against the recipe written out here once more."""

import hashlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from sacremoses import MosesTokenizer

from tests.translation.published_archives import join, make_sentences, write_archive, write_segments
from un.translation.fairseq_library import restore_global_state
from un.translation.preparation.iwslt14 import LANGUAGES, LIMITS, Options, prepare
from un.translation.preparation.lines import read_lines
from un.translation.prepared import PreparedFolder

SCRIPT = Path(__file__).parents[2] / "scripts/prepare_iwslt14.py"
SETS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
OPTIONS = Options(merges=60)
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


def write_published(path: Path, without: str | None = None) -> Path:
    members = {f"de-en/train.tags.de-en.{language}": join(tag(language)) for language in LANGUAGES}
    for seed, name in enumerate((*SETS, "TED.tst2013"), 1):
        for language in LANGUAGES:
            sentences = [*make_sentences(language, 3, seed), f"{name} ends’s here"]
            members[f"de-en/IWSLT14.{name}.de-en.{language}.xml"] = write_segments(sentences)
    members.pop(without, None)
    return write_archive(path, members)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("iwslt14")
    return prepare(write_published(root / "de-en.tgz"), root / "prepared", OPTIONS)


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
    assert read_step(prepared, "4-divided", f"train.{language}") == [
        line for i, line in enumerate(tokens) if i not in held
    ]
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
    codes = (prepared / "bpe.codes").read_text().splitlines()
    assert codes[0] == "#version: 0.2"
    assert len(codes) == 1 + OPTIONS.merges
    learned = subprocess.run(
        [sys.executable, "-m", "subword_nmt.learn_bpe", "-s", str(OPTIONS.merges)],
        input=join([line for lang in LANGUAGES for line in read_step(prepared, "4-divided", f"train.{lang}")]),
        capture_output=True,
        text=True,
        check=True,
    )
    assert learned.stdout.splitlines() == codes


def test_subwords_join_to_the_words_again(prepared):
    for split in ("train", "valid", "test"):
        for language in LANGUAGES:
            subwords = read_step(prepared, "6-subwords", f"{split}.{language}")
            words = read_step(prepared, "4-divided", f"{split}.{language}")
            assert [line.replace("@@ ", "") for line in subwords] == words
    assert any("@@ " in line for line in read_step(prepared, "6-subwords", "train.de"))


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
    ours = prepared
    if not joined:
        options_apart = Options(merges=OPTIONS.merges, dictionary="separate")
        archive = write_published(tmp_path / "de-en.tgz")
        ours = prepare(archive, tmp_path / "ours", options_apart, workers=2)
    theirs = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir() if path.suffix != ".log"}
    assert len(theirs) == 2 + 3 * 2 * 2
    assert {name: (ours / name).read_bytes() for name in theirs} == theirs
    assert (theirs["dict.de.txt"] == theirs["dict.en.txt"]) is joined


def test_the_record_says_what_a_reader_needs(prepared):
    record = json.loads((prepared / "preparation.json").read_text())
    expected = {"data": "iwslt14_de_en", "source_lang": "de", "target_lang": "en", "lowercase": True, "merges": 60}
    assert {key: record[key] for key in expected} == expected
    assert (record["counts"]["train"], record["counts"]["valid"], record["counts"]["test"]) == (112, 5, 20)
    codes = (prepared / "bpe.codes").read_bytes()
    assert record["files"]["bpe.codes"]["sha256"] == hashlib.sha256(codes).hexdigest()
    assert "raw/test.en" in record["files"]


def test_the_official_script_keeps_the_apostrophe_of_the_test_text(tmp_path):
    archive = write_published(tmp_path / "de-en.tgz")
    prepared = prepare(archive, tmp_path / "prepared", Options(merges=10, apostrophes="keep"))
    assert list(read_lines(prepared / "raw/test.en"))[3] == "TED.dev2010 ends’s here"


def test_defaults_are_the_numbers_of_the_recipe():
    assert (LIMITS.shortest, LIMITS.longest, LIMITS.ratio) == (1, 175, 1.5)
    options = Options()
    assert (options.merges, options.dictionary, options.apostrophes) == (10000, "joined", "map")


def test_an_archive_without_a_test_set_is_refused_by_name(tmp_path):
    archive = write_published(tmp_path / "de-en.tgz", without="de-en/IWSLT14.TEDX.dev2012.de-en.en.xml")
    with pytest.raises(ValueError, match=r"no IWSLT14\.TEDX\.dev2012\.de-en\.en\.xml in .*de-en\.tgz"):
        prepare(archive, tmp_path / "prepared", OPTIONS)


def test_a_line_lost_on_one_side_stops_the_preparation(tmp_path):
    members = {f"train.tags.de-en.{language}": join(tag(language)) for language in LANGUAGES}
    members["train.tags.de-en.en"] += "one more\n"
    for name in SETS:
        for language in LANGUAGES:
            members[f"IWSLT14.{name}.de-en.{language}.xml"] = write_segments(make_sentences(language, 2, 1))
    archive = write_archive(tmp_path / "de-en.tgz", members)
    with pytest.raises(ValueError, match=r"unequal numbers of lines: .*train.de 120, .*train.en 121"):
        prepare(archive, tmp_path / "prepared", OPTIONS)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"apostrophes": "drop"}, "apostrophes must be map or keep, got 'drop'"),
        ({"dictionary": "shared"}, "dictionary must be joined or separate, got 'shared'"),
        ({"merges": 0}, "merges must be at least 1, got 0"),
    ],
)
def test_unknown_choices_are_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        Options(**choice)


def test_the_program_prepares_and_prints_checksums(tmp_path, monkeypatch, capsys):
    archive, product = write_published(tmp_path / "de-en.tgz"), tmp_path / "data/prepared"
    arguments = ["--archive", str(archive), "--output", str(product), "--merges", "20", "--workers", "2"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    digest = hashlib.sha256((product / "dict.en.txt").read_bytes()).hexdigest()
    assert f"  {digest}  dict.en.txt" in capsys.readouterr().out
    assert len((product / "bpe.codes").read_text().splitlines()) == 21


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--archive", "nothing.tgz"], "error: no archive nothing.tgz; fetch https://dl.fbaipublicfiles.com"),
        (["--archive", "nothing.tgz", "--apostrophes", "drop"], "error: apostrophes must be map or keep, got 'drop'"),
    ],
)
def test_the_program_reports_errors_in_one_line(arguments, message):
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_the_data_module_reads_what_was_prepared(prepared):
    folder = PreparedFolder(prepared, LANGUAGES)
    preprocessor = folder.read_preprocessor(lowercase=False)
    test = folder.open_split("test", preprocessor, limit=None, seed=0).texts
    assert preprocessor.lowercase
    assert test.reference == list(read_lines(prepared / "raw/test.en"))
    assert test.source[3] == "TED.dev2010 ends's here"
    words = read_step(prepared, "4-divided", "train.en")[0]
    pieces = read_step(prepared, "6-subwords", "train.en")[0]
    assert " ".join(preprocessor.encode_target(words.replace(" .", "."))) == pieces
