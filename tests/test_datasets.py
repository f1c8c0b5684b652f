"""Folders of data for the Hugging Face library, the names of their splits, and loaders that resume."""

import datasets
import pandas
import pytest

from un.datasets import BatchLoader, ResumableDataModule, derive_seed, find_split, load_dataset, require_split


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keeps what `datasets` converts out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write(path, numbers):
    """With pandas, as `datasets` cannot write into every folder."""
    pandas.DataFrame({"number": numbers}).to_parquet(path)


@pytest.mark.parametrize("name", ["plain", "a::b [1] x*y? k=v,l {c}", "~$HOME Käse 中文\n'a' \"b\"\\"])
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


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "data.path='' .*: no such folder"), ("./a", r"\(as a folder /.*/a\): no"), ("a", "nor on the hub")],
)
def test_what_is_not_a_folder(path, message):
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


def test_splits_that_are_missing_or_ambiguous():
    with pytest.raises(ValueError, match="split 'validation' may be any of val, dev; name one of them"):
        find_split(["val", "dev"], "validation")
    with pytest.raises(ValueError, match="no split 'test' in here; there are train, val"):
        require_split(["train", "val"], "here", "test")


class CountingSampler:
    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 4


def make_loader(epoch=0):
    """Its batches are the numbers of epoch and batch."""
    sampler = CountingSampler()
    sampler.set_epoch(epoch)
    return BatchLoader(sampler, lambda start: [(sampler.epoch, number) for number in range(start, 4)])


class CountingData(ResumableDataModule):
    def make_loader(self, split, training):
        loader = make_loader()
        loader.name = (split, training)
        return loader


def test_seeds_depend_on_every_number_and_their_order():
    assert len({derive_seed(*numbers) for numbers in [(0, 0), (0, 1), (1, 0), (1, 2), (2, 1), (2**40, 1)]}) == 6


def test_epoch_is_asked_for_when_the_first_batch_is():
    loader = make_loader()
    batches = iter(loader)
    loader.sampler.set_epoch(7)
    assert list(batches) == [(7, number) for number in range(4)]


@pytest.mark.parametrize("done", [0, 2, 4])
def test_another_loader_resumes_after_the_batches_handed_out(done):
    loader, resumed = make_loader(2), make_loader(2)
    list(zip(range(done), loader, strict=False))
    resumed.load_state_dict(loader.state_dict())
    assert list(resumed) == [(2, number) for number in range(done, 4)]
    assert list(resumed) == [(2, number) for number in range(4)]  # the state counts once


def test_states_of_another_epoch_and_of_other_batches():
    loader = make_loader(3)
    loader.load_state_dict({"epoch": 2, "batch": 3, "num_batches": 4})
    assert list(loader) == [(3, number) for number in range(4)]
    with pytest.raises(ValueError, match="written with 5 batches per epoch, this run has 4"):
        loader.load_state_dict({"epoch": 0, "batch": 1, "num_batches": 5})


def test_data_module_keeps_the_position_of_training_for_the_next_loader():
    data = CountingData()
    assert data.state_dict() == {}
    next(iter(data.train_dataloader()))
    resumed = CountingData()
    resumed.load_state_dict(data.state_dict())
    assert list(resumed.train_dataloader()) == [(0, 1), (0, 2), (0, 3)]
    assert list(resumed.train_dataloader()) == [(0, number) for number in range(4)]


def test_only_training_shuffles():
    data = CountingData()
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert [loader.name for loader in loaders] == [("train", True), ("val", False), ("test", False)]
