"""Classes keep their numbers whatever the data evaluated later are called and counted."""

import datasets
import numpy as np
import pytest
import torch

from tests.vision.image_samples import draw_images
from un.vision.data import ImageDataModule
from un.vision.preprocessor import ImagePreprocessor
from un.vision.transforms import BatchTransform, ImageTransform

TRAINED = ImagePreprocessor(3, ("cat", "dog", "fox"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def write_images(folder, split, names, labels):
    """Images of noise, the class of each told by `names`; null: by a plain number."""
    folder.mkdir(exist_ok=True)
    label = datasets.Value("int64") if names is None else datasets.ClassLabel(names=names)
    features = datasets.Features({"img": datasets.Image(), "label": label})
    rows = {"img": draw_images(len(labels)), "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def read_labels(data):
    return torch.cat([labels for _, labels in data.test_dataloader()]).tolist()


@pytest.mark.parametrize("names", [("Füchse & Co.", "猫"), None])
def test_what_is_read_is_what_was_written(tmp_path, names):
    written = ImagePreprocessor(2, names, (0.1307,), (1 / 3,))
    written.save(tmp_path)
    assert ImagePreprocessor.load(tmp_path) == written


@pytest.mark.parametrize("content", [None, "{", '{"num_classes": 3}'])
def test_damage_is_named_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "images.json").write_text(content)
    with pytest.raises(ValueError, match=r"images.json is missing or damaged") as caught:
        ImagePreprocessor.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (TRAINED, ""),
        (ImagePreprocessor(3, ("cat", "fox", "dog"), TRAINED.mean, TRAINED.std), "class 1 'dog' instead of 'fox'"),
        (ImagePreprocessor(2, ("cat", "dog"), TRAINED.mean, TRAINED.std), "num_classes=3 instead of 2"),
        (ImagePreprocessor(3, None, TRAINED.mean, TRAINED.std), r"label_names=('cat', 'dog', 'fox') instead of None"),
        (ImagePreprocessor(3, TRAINED.label_names, (0.0,) * 3, TRAINED.std), "mean=(0.5, 0.5, 0.5) instead of (0.0"),
    ],
)
def test_differences_are_named(caplog, other, difference):
    """In the log where weights of the other one are a start."""
    caplog.set_level("INFO")
    found = TRAINED.explain_difference(other)
    assert found.startswith(difference)
    assert bool(found) == bool(difference)
    TRAINED.check_initial_weights(other)
    assert (f"trained for another task; this one has {difference}" in caplog.text) == bool(difference)


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (["cat", "dog", "fox"], [0, 2, 1], [0, 2, 1]),
        (["fox", "cat", "dog"], [0, 1, 2, 0], [2, 0, 1, 2]),
        (["ape", "cat", "fox"], [1, 2, 1], [0, 2, 0]),  # no example is of the first
        (None, [2, 0, 1], [2, 0, 1]),
    ],
)
def test_classes_are_found_by_name(make_data, tmp_path, caplog, names, labels, expected):
    data = make_data(write_images(tmp_path / "images", "test", names, labels), num_classes=None)
    data.use_preprocessor(TRAINED)
    assert read_labels(data) == expected
    assert data.model_arguments()["num_classes"] == 3
    assert ("does not name its classes; assuming" in caplog.text) == (names is None)


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (["ape", "cat", "dog"], [1, 0, 2], "test of .* has examples of class 'ape', which the .* knows cat, dog, fox"),
        (None, [3], "label 3 in column 'label' of test of .* is outside the 3 classes"),
    ],
)
def test_unknown_classes_are_refused(make_data, tmp_path, names, labels, message):
    data = make_data(write_images(tmp_path / "images", "test", names, labels))
    data.use_preprocessor(TRAINED)
    with pytest.raises(ValueError, match=message) as caught:
        data.test_dataloader()
    assert "\n" not in str(caught.value)


def test_other_normalisation_is_refused(make_data):
    data = make_data(transform=BatchTransform([0.5] * 3, [0.3] * 3))
    with pytest.raises(ValueError, match=r"std=\(0.3, 0.3, 0.3\), the model was trained with .*0.25"):
        data.use_preprocessor(TRAINED)


@pytest.mark.parametrize("hold_out", [{"val_size": 0.5}, {"val_split": "validation"}])
def test_the_training_images_may_be_gone(make_data, make_folder, hold_out):
    options = {"image_column": "image", "num_classes": None, "batch_size": 2, "transform": ImageTransform(16)}
    folder = make_folder("cat", "dog")
    trained = make_data(folder, **options, **hold_out)
    assert trained.preprocessor.label_names == ("cat", "dog")
    expected = torch.cat([images for images, _ in trained.test_dataloader()])
    for path in [*(folder / "train").rglob("*.png"), *(folder / "val").rglob("*.png")]:
        path.unlink()
    data = make_data(folder, **options, **hold_out)
    data.use_preprocessor(trained.preprocessor)
    data.setup("test")
    assert torch.equal(torch.cat([images for images, _ in data.test_dataloader()]), expected)
    assert read_labels(data) == [0, 0, 1, 1]


@pytest.mark.parametrize("options", [{}, {"transform": ImageTransform(12, mean=TRAINED.mean, std=TRAINED.std)}])
def test_examples_take_no_data(make_data, options):
    data = make_data("no/such/folder", **options)
    data.use_preprocessor(TRAINED)
    first, again, other = (data.make_example_batch(seed)[0] for seed in (0, 0, 1))
    assert first.shape == (8, 3, 12, 12)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert np.abs(first.numpy()).max() <= 2  # (0 or 1 - 0.5) / 0.25


def test_training_data_describe_themselves(make_data, parquet_folder):
    data: ImageDataModule = make_data(parquet_folder)
    assert data.preprocessor == ImagePreprocessor(3, ("0", "1", "2"), (0.5,) * 3, (0.25,) * 3)
