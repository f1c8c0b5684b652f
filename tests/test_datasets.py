"""Folders of data for the Hugging Face library, and the names of their splits."""

import datasets
import pandas
import pytest

from un.datasets import find_split, load_dataset, require_split


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keeps what `datasets` converts out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write(path, numbers):
    """With pandas, as `datasets` cannot write into every folder."""
    pandas.DataFrame({"number": numbers}).to_parquet(path)


@pytest.mark.parametrize(
    "name",
    ["plain", "a [1] b", "x*y?", "a::b", "$HOME", "~a", "{a}", "Käse 中文", "a\nb", "'a' \"b\"", "a\\b", "k=v,l"],
)
def test_folders_of_any_name(name, tmp_path, monkeypatch):
    folder = tmp_path / name
    folder.mkdir()
    for split, count in (("train", 3), ("test", 2)):
        write(folder / f"{split}-00000-of-00001.parquet", list(range(count)))
    monkeypatch.chdir(tmp_path)
    found = load_dataset(str(folder))
    assert {split: list(found[split]["number"]) for split in found} == {"train": [0, 1, 2], "test": [0, 1]}
    write(folder / "test-00000-of-00001.parquet", [9])
    assert list(load_dataset(name)["test"]["number"]) == [9]


@pytest.mark.parametrize(("path", "message"), [("", "data.path='': no such folder"), ("a", "nor on the hub")])
def test_what_is_no_folder(path, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(path)


def test_configurations(tmp_path):
    """As the card of a hub's data set declares them."""
    lines = ["---", "configs:"]
    for name in ("de-en", "fr-en"):
        (tmp_path / name).mkdir()
        datasets.Dataset.from_dict({"name": [name]}).to_parquet(tmp_path / name / "train.parquet")
        lines += [f"- config_name: {name}", f"  data_files: {name}/train.parquet"]
    (tmp_path / "README.md").write_text("\n".join([*lines, "---"]))
    assert load_dataset(str(tmp_path), ["en-fr", "fr-en"])["train"]["name"][0] == "fr-en"
    with pytest.raises(ValueError, match=r"Please pick one among the available configs: \['de-en', 'fr-en'\]"):
        load_dataset(str(tmp_path), ["en-it"])


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (["train", "val"], ["validation"], "val"),
        (["valid", "val"], ["val"], "val"),
        (["Train"], ["train"], "Train"),
        (["train", "validation"], ["test", "valid"], "validation"),
        (["train"], ["test"], None),
        (["mine"], ["mine"], "mine"),
    ],
)
def test_spellings_of_splits(names, wanted, found):
    assert find_split(names, *wanted) == found


def test_splits_that_are_not_there_or_several():
    with pytest.raises(ValueError, match="split 'validation' may be any of val, dev; name one of them"):
        find_split(["val", "dev"], "validation")
    with pytest.raises(ValueError, match="no split 'test' in here; there are train, val"):
        require_split(["train", "val"], "here", "test")
