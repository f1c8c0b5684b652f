import os
import zipfile

import pytest

from tests.translation.published_archives import write_archive
from un.translation.preparation.archives import download, extract, fetch_from_hub
from un.translation.preparation.lines import map_lines, read_lines, read_parallel, write_lines


def test_files_are_found_by_name_in_any_folder_of_tar_and_zip(tmp_path):
    tar = write_archive(tmp_path / "a.tgz", {"deep/er/one.txt": "1", "../two.txt": "2", "other": "x"})
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("somewhere/three.txt", "3")
    folder = tmp_path / "out"
    folder.mkdir()
    extract([tar, tmp_path / "b.zip"], ["one.txt", "two.txt", "three.txt"], folder, optional=("four.txt",))
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "one.txt": "1",
        "two.txt": "2",
        "three.txt": "3",
    }
    assert not (tmp_path / "two.txt").exists()


def test_a_missing_member_is_named(tmp_path):
    archive = write_archive(tmp_path / "a.tgz", {"one.txt": "1"})
    with pytest.raises(ValueError, match=r"^no b.txt, c.txt in .*a.tgz$"):
        extract([archive], ["one.txt", "c.txt", "b.txt"], tmp_path)


@pytest.mark.parametrize("damage", ["cut", "foreign", "missing"])
def test_a_damaged_archive_is_named(tmp_path, damage):
    noise = "".join(chr(33 + (i * i * 7919) % 89) for i in range(200_000))
    archive = write_archive(tmp_path / "a.tgz", {"one.txt": noise, "two.txt": "2"})
    content = archive.read_bytes()
    archive.write_bytes({"cut": content[: len(content) // 2], "foreign": b"no archive at all", "missing": b""}[damage])
    if damage == "missing":
        archive.unlink()
    with pytest.raises(ValueError, match=r"a\.tgz"):
        extract([archive], ["one.txt", "two.txt"], tmp_path)


def test_a_download_happens_once(tmp_path):
    (tmp_path / "served").write_text("content")
    path = tmp_path / "new/folder/file.tgz"
    lines = []
    assert download((tmp_path / "served").as_uri(), path, lines.append) == path
    (tmp_path / "served").unlink()
    download((tmp_path / "served").as_uri(), path, lines.append)
    assert path.read_text() == "content"
    assert ["downloading" in line for line in lines] == [True, False]


def test_a_failed_download_leaves_nothing_that_looks_finished(tmp_path):
    with pytest.raises(ValueError, match=r"cannot download file://.*nothing"):
        download((tmp_path / "nothing").as_uri(), tmp_path / "file.tgz")
    assert not (tmp_path / "file.tgz").exists()


def test_an_unreachable_hub_is_one_line():
    with pytest.raises(ValueError, match=r"^data/de-en.zip of nobody/nothing cannot be fetched from the hub [^\n]*$"):
        fetch_from_hub("nobody/nothing", "data/de-en.zip")


def test_only_line_feeds_end_lines(tmp_path):
    lines = ["a\rb", "c\u2028d\x85e", "", "f\x0cg"]
    assert write_lines(tmp_path / "text", lines) == 4
    assert list(read_lines(tmp_path / "text")) == lines


def test_a_last_line_without_line_feed_counts(tmp_path):
    (tmp_path / "text").write_bytes(b"a\nb")
    assert list(read_lines(tmp_path / "text")) == ["a", "b"]


def test_a_foreign_encoding_is_named_by_file_and_byte(tmp_path):
    (tmp_path / "text").write_bytes("gut\nschön\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"text is not UTF-8: byte 7 is 0xf6$"):
        list(read_lines(tmp_path / "text"))


def test_unequal_files_are_named_with_their_counts(tmp_path):
    write_lines(tmp_path / "a", ["1", "2", "3"])
    write_lines(tmp_path / "b", ["1", "2"])
    with pytest.raises(ValueError, match=r"unequal numbers of lines: .*a 3, .*b 2$"):
        list(read_parallel(tmp_path / "a", tmp_path / "b"))


def test_workers_keep_the_order(monkeypatch):
    monkeypatch.setattr("un.translation.preparation.lines.FEW_LINES", 2)
    monkeypatch.setattr("un.translation.preparation.lines.LINES_AT_ONCE", 70)
    monkeypatch.setattr("un.translation.preparation.lines.CHUNK", 9)
    lines = [f"Line {number}" for number in range(500)]
    assert list(map_lines(str.lower, iter(lines), workers=2)) == [line.lower() for line in lines]
    processes = map_lines(name_process, iter(lines), workers=2)
    assert str(os.getpid()) not in set(processes)


def name_process(line: str) -> str:
    return str(os.getpid())
