import datasets
import pytest
from PIL import Image

from tests.vision.image_samples import make_dataset
from un.vision.data import ImageDataModule
from un.vision.transforms import BatchTransform


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keeps what `datasets` converts out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def parquet_folder(tmp_path):
    """60 training and 20 test images of 3 classes."""
    folder = tmp_path / "parquet"
    folder.mkdir()
    make_dataset(60, 0).to_parquet(folder / "train.parquet")
    make_dataset(20, 1).to_parquet(folder / "test.parquet")
    return folder


@pytest.fixture
def make_folder(tmp_path):
    """Makes `<split>/<class>/<count> images`, whose colours are the numbers of class and image; sizes differ."""

    def make(*classes, splits=("train", "val", "test"), count=2, name="images"):
        for split in splits:
            for number, class_name in enumerate(classes):
                folder = tmp_path / name / split / class_name
                folder.mkdir(parents=True)
                for index in range(count):
                    Image.new("RGB", (8 + index, 8 + index), (number, index, 0)).save(folder / f"{index}.png")
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def make_data():
    """Makes a data module of small images, with the options that most tests want."""

    def make(path=None, *, crop_padding=2, flip=0.5, **options):
        defaults = {"image_size": 12, "num_channels": 3, "batch_size": 8, "image_column": "img", "num_classes": 3}
        defaults["transform"] = BatchTransform([0.5] * 3, [0.25] * 3, crop_padding=crop_padding, flip=flip)
        if "val_split" not in options:
            defaults["val_size"] = 0.2
        return ImageDataModule(None if path is None else str(path), **{**defaults, **options})

    return make
