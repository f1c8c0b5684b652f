"""The parts of a preparation: archives, lines of files, and what happens to one line."""

import zipfile

import pytest

from tests.translation.published_archives import write_archive
from un.translation.preparation.archives import download, extract, fetch_from_hub
from un.translation.preparation.lines import CHUNK, map_lines, read_lines, read_rows, write_lines
from un.translation.preparation.sentences import Limits, normalize, read_segments, strip_tags
from un.translation.text import tokenize


def test_files_are_found_by_name_in_any_folder_of_tar_and_zip(tmp_path):
    tar = write_archive(tmp_path / "a.tgz", {"deep/er/one.txt": "1", "../two.txt": "2", "other": "x"})
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("somewhere/three.txt", "3")
    folder = tmp_path / "out"
    folder.mkdir()
    names = ["one.txt", "two.txt", "three.txt"]
    extract([tar, tmp_path / "b.zip"], names, folder, optional=("four.txt",))
    assert [(folder / name).read_text() for name in names] == ["1", "2", "3"]
    assert not (tmp_path / "two.txt").exists()
    with pytest.raises(ValueError, match=r"^no b.txt, c.txt in .*a.tgz$"):
        extract([tar], ["one.txt", "c.txt", "b.txt"], folder)


@pytest.mark.parametrize("damage", ["cut", "foreign", "missing"])
def test_a_damaged_archive_is_named(tmp_path, damage):
    noise = "".join(chr(33 + (i * i * 7919) % 89) for i in range(200_000))
    archive = write_archive(tmp_path / "a.tgz", {"one.txt": noise, "two.txt": "2"})
    content = archive.read_bytes()
    archive.write_bytes({"cut": content[: len(content) // 2], "foreign": b"not an archive", "missing": b""}[damage])
    if damage == "missing":
        archive.unlink()
    with pytest.raises(ValueError, match=r"a\.tgz"):
        extract([archive], ["one.txt", "two.txt"], tmp_path)


def test_a_download_happens_once_and_a_failed_one_leaves_nothing(tmp_path):
    served, path = tmp_path / "served", tmp_path / "new/folder/file.tgz"
    with pytest.raises(ValueError, match=r"cannot download file://.*served"):
        download(served.as_uri(), path)
    assert not path.exists()
    served.write_text("content")
    download(served.as_uri(), path)
    served.unlink()
    assert download(served.as_uri(), path) == path
    assert path.read_text() == "content"


def test_an_unreachable_hub_is_one_line():
    with pytest.raises(ValueError, match=r"^data/x.zip of nobody/nothing cannot be downloaded from the hub [^\n]*$"):
        fetch_from_hub("nobody/nothing", "data/x.zip")


def test_only_line_feeds_end_lines(tmp_path):
    text = ["a\rb", "c\u2028d\x85e", "", "f\x0cg"]
    assert write_lines(tmp_path / "text", text) == 4
    assert list(read_lines(tmp_path / "text")) == text
    (tmp_path / "open").write_bytes(b"a\nb")
    assert list(read_lines(tmp_path / "open")) == ["a", "b"]
    with pytest.raises(ValueError, match=r"unequal numbers of lines: .*text 4, .*open 2$"):
        list(read_rows(tmp_path / "text", tmp_path / "open"))
    (tmp_path / "foreign").write_bytes("gut\nschön\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"foreign is not UTF-8: byte 0xf6 in line 2"):
        list(read_lines(tmp_path / "foreign"))


def test_workers_keep_the_order():
    lines = [f"line {number}" for number in range(3 * CHUNK)]
    assert list(map_lines(str.upper, iter(lines), workers=2)) == [line.upper() for line in lines]


def test_markup_is_removed_and_nothing_else():
    tagged = ["<url>http://example.org</url>", "<keywords>talks, science</keywords>", "<talkid>17</talkid>"]
    tagged += ["<title>A title</title>", "<description>About</description>", " A sentence with 1 < 2 ."]
    assert list(strip_tags(tagged)) == ["A title", "About", " A sentence with 1 < 2 ."]
    evaluation = ["<doc>", '<seg id="1"> Tom &amp; Jerry </seg>', '<seg id="22">a</seg>  ', "<p>text</p>"]
    assert list(read_segments(evaluation)) == ["Tom &amp; Jerry", "a"]


@pytest.mark.parametrize(
    ("language", "line", "tokens"),
    [
        ("de", "Wie geht's [heute]?", "Wie geht &apos; s &#91; heute &#93; ?"),
        ("en", 'He paid 5,300 "euros" & left.', "He paid 5,300 &quot; euros &quot; &amp; left ."),
        ("de", "Das ist z.B. am 3. Mai.", "Das ist z.B. am 3. Mai ."),
        ("en", "So am I.", "So am I ."),  # a single letter, an abbreviation, a German number: the last period is split
        ("en", "He lives in the U.S.", "He lives in the U.S ."),
        ("de", "Er hat ein iPhone 5.", "Er hat ein iPhone 5 ."),
        ("en", "He said 'yes.'", "He said &apos; yes . &apos;"),
        ("en", "  \t ", ""),
    ],
)
def test_tokens_are_those_of_moses(language, line, tokens):
    assert tokenize(line, language, split_last_period=True) == tokens


@pytest.mark.parametrize(
    ("language", "line", "normalized"),
    [
        ("en", "„Hallo“ – she’s said «no» …", '"Hallo" - she\'s said "no" ...'),
        ("en", "10\u00a0000 euros", "10.000 euros"),
        ("de", "10\u00a0000 Euro", "10,000 Euro"),
        ("en", "a\u200bb\x07c", "a b c"),
        ("en", "the ’90s", 'the "90s'),  # the Perl script takes a lone ’ for a quotation mark
        ("en", '"well",', '"well,"'),
        ("de", '"gut,"', '"gut",'),
        ("de", 'Er sagt "gut."', 'Er sagt "gut".'),  # the line feed behind counts as text
    ],
)
def test_punctuation_is_normalised_as_in_the_perl_scripts(language, line, normalized):
    assert normalize(line, language) == normalized


@pytest.mark.parametrize(
    ("source", "target", "kept"),
    [
        ("a b c", "x y", True),  # a ratio of exactly 1.5
        ("x y", "a b c d", False),
        ("a", " ", False),
        ("a b c d e f", "a b c d e", False),  # longer than 5
        ("a", "b", False),  # shorter than 2
        ("a " + "b" * 1001, "c d", False),
    ],
)
def test_pairs_are_kept_by_length_and_ratio(source, target, kept):
    assert Limits(shortest=2, longest=5, ratio=1.5).accept(source, target) is kept
