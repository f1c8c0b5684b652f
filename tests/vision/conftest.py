import datasets
import pytest
from PIL import Image

from tests.vision.image_samples import draw_images, make_dataset
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
def class_folder(tmp_path):
    """Class folders `cat` and `dog`, images of several sizes: 8 + 8 to train on, 3 + 3 to validate, 2 + 2 to test."""
    for split, count in (("train", 8), ("val", 3), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw_images(1, number, 20 + number)[0]).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture(scope="session")
def make_data():
    """Makes a data module of small images, with the options that most tests want."""

    def make(path=None, **options):
        transform = BatchTransform(
            [0.5] * 3, [0.25] * 3, crop_padding=options.pop("crop_padding", 2), flip=options.pop("flip", 0.5)
        )
        defaults = {"image_size": 12, "num_channels": 3, "batch_size": 8, "image_column": "img", "num_classes": 3}
        if "val_split" not in options:
            defaults["val_size"] = 0.2
        path = None if path is None else str(path)
        return ImageDataModule(path, **{"transform": transform, **defaults, **options})

    return make
