"""What names a run by its data, and what two folders must have in common to be the same data."""

import shutil
from pathlib import Path

import pytest
import yaml

from un.command.errors import CONFIG_FOLDER
from un.training.data_identity import LOCATED, name_data, resolve_path, take_fingerprint

EMBEDDED = {"digits": "sklearn-digits", "phrasebook": "phrasebook"}


def make_folder(path: Path, sizes: dict[str, int]) -> Path:
    for name, size in sizes.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"x" * size)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "one/photos", {"train/cat/a.png": 3, "train/dog/b.png": 5, "test/cat/a.png": 7})


def test_every_spelling_of_a_folder_is_one_name(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(photos.parent))
    monkeypatch.chdir(photos.parent.parent)
    (photos.parent / "link").symlink_to(photos)
    spellings = [
        *(str(photos), f"{photos}/", f"{photos}//", f"{photos}/../photos", str(photos.parent / "link")),
        *("one/photos", "./one/photos/", "~/photos", "~/link/"),
    ]
    (name,) = {name_data("image_folder", path) for path in spellings}
    assert name.startswith("photos-")


def test_folders_with_the_same_base_name_are_told_apart(tmp_path: Path, photos: Path) -> None:
    other = make_folder(tmp_path / "two/photos", {"train/cat/a.png": 3})
    names = {name_data("image_folder", path) for path in (str(photos), str(other), "user/photos")}
    assert len(names) == 3
    assert all(name.startswith("photos-") for name in names)


def test_paths_of_known_sets_name_nothing(photos: Path) -> None:
    """For these it says where a copy lies; the embedded sets have no other place, so a path there is other data."""
    files = (CONFIG_FOLDER / "data").glob("*.yaml")
    defaults = {file.stem: yaml.safe_load(file.read_text())["path"] for file in files}
    asked_for = {"image_folder": "???", "parallel_text": "???"}
    assert {*defaults.items()} - {*EMBEDDED.items()} - {*asked_for.items()} == {
        (name, defaults[name]) for name in LOCATED
    }
    assert [name_data(choice, str(photos)) for choice in LOCATED] == [""] * len(LOCATED)
    for choice, path in EMBEDDED.items():
        assert name_data(choice, path) == ""
        assert name_data(choice, str(photos)).startswith("photos-")
        assert name_data(choice, None) == "null"


def test_a_fingerprint_is_of_names_and_sizes_wherever_they_lie(tmp_path: Path, photos: Path) -> None:
    taken = take_fingerprint(str(photos))
    assert (taken.path, taken.files, taken.size) == (str(photos), 3, 15)
    copy = shutil.copytree(photos, tmp_path / "elsewhere")
    assert take_fingerprint(str(copy)).digest == taken.digest
    make_folder(copy, {".DS_Store": 9, ".cache/x": 9, "train/cat/Thumbs.db": 9})
    assert take_fingerprint(str(copy)).digest == taken.digest
    (copy / "train/cat/a.png").write_bytes(b"yyy")  # contents are not read
    assert take_fingerprint(str(copy)).digest == taken.digest


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "train/cat/a.png").write_bytes(b"four"),
        lambda folder: (folder / "train/cat/c.png").touch(),
        lambda folder: (folder / "train/cat/a.png").rename(folder / "train/dog/a.png"),
    ],
    ids=["size", "one more", "moved"],
)
def test_other_files_have_another_fingerprint(change, photos: Path) -> None:
    before = take_fingerprint(str(photos))
    change(photos)
    assert take_fingerprint(str(photos)).digest != before.digest


def test_links_are_followed_and_lead_nowhere_twice(tmp_path: Path, photos: Path) -> None:
    linked = make_folder(tmp_path / "linked", {"test/cat/a.png": 7})
    (linked / "train").symlink_to(photos / "train")
    assert take_fingerprint(str(linked)).digest == take_fingerprint(str(photos)).digest
    (linked / "test/again").symlink_to(linked)
    (linked / "test/gone").symlink_to(tmp_path / "nowhere")
    (linked / ".round").symlink_to(linked / ".round")
    assert resolve_path(str(linked / ".round"))  # of a link to itself nothing is known
    assert take_fingerprint(str(linked)).files == 4


def test_runs_among_the_data_are_none_of_them(photos: Path) -> None:
    before = take_fingerprint(str(photos), photos / "runs")
    make_folder(photos / "runs", {"digits_vit/norm=un/seed=0/result.json": 5})
    assert take_fingerprint(str(photos), photos / "runs") == before
    assert take_fingerprint(str(photos), photos).files == before.files + 1  # data are not left out altogether


def test_what_lies_in_no_folder_is_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    digests = [take_fingerprint(path).digest for path in ("user/set", "user/set/", "user/other", None)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
