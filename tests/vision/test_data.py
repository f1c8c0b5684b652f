import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.vision.image_samples import draw_images, make_dataset
from un.vision.data import ImageDataModule, measure_loader
from un.vision.sources import DIGITS, open_split
from un.vision.transforms import BatchTransform, ImageTransform


def make_digits(**options):
    transform = BatchTransform([0.305], [0.376])
    return ImageDataModule(DIGITS, transform, image_size=8, num_channels=1, batch_size=64, val_size=0.1, **options)


def gather(loader):
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_parquet_folder_gives_the_images_that_were_written(make_data, parquet_folder):
    images, labels = gather(make_data(parquet_folder).test_dataloader())
    expected = torch.from_numpy(np.stack(draw_images(20, seed=1))).permute(0, 3, 1, 2).float()
    torch.testing.assert_close((images * 0.25 + 0.5) * 255, expected)
    assert labels.tolist() == [row % 3 for row in range(20)]


def test_files_with_shards_and_undeclared_types(make_data, tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    for number, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test")):
        plain = make_dataset(30, number).cast_column("img", datasets.Image(decode=False))
        rows = {"img": [row["bytes"] for row in plain["img"]], "label": plain["label"]}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{name}.parquet")
    data = make_data(folder, val_size=10)
    images, _ = gather(data.val_dataloader())
    assert images.shape == (10, 3, 12, 12)
    assert len(data.splits["train"]) == 50


def test_image_folder(make_data, class_folder):
    options = {"image_column": "image", "num_classes": None, "val_split": "validation", "batch_size": 2}
    data = make_data(class_folder, transform=ImageTransform(16), image_size=16, **options)
    assert data.model_arguments() == {"num_classes": 2, "img_size": 16, "in_chans": 3}
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 16, "val": 6, "test": 4}
    images, labels = gather(data.test_dataloader())
    assert images.shape == (4, 3, 16, 16)
    assert labels.tolist() == [0, 0, 1, 1]


def test_validation_serves_as_test_where_there_is_no_other(make_data, class_folder):
    shutil.rmtree(class_folder / "test")
    options = {"image_column": "image", "num_classes": 2, "val_split": "validation", "batch_size": 2}
    data = make_data(class_folder, transform=ImageTransform(16), **options)
    data.setup()
    assert len(data.splits["test"]) == 6


def test_digits_have_one_test_split_and_a_validation_split_by_seed():
    first, same, other = make_digits(seed=0), make_digits(seed=0), make_digits(seed=1)
    for data in (first, same, other):
        data.setup()
    assert {name: len(split) for name, split in first.splits.items()} == {"train": 1293, "val": 144, "test": 360}
    assert torch.equal(gather(first.test_dataloader())[0], gather(other.test_dataloader())[0])
    assert torch.equal(gather(first.val_dataloader())[0], gather(same.val_dataloader())[0])
    assert not torch.equal(gather(first.val_dataloader())[0], gather(other.val_dataloader())[0])
    images, _ = gather(first.train_dataloader())
    assert images.shape[1:] == (1, 8, 8)
    assert abs(images.mean()) < 0.02
    assert abs(images.std() - 1) < 0.02


def test_held_out_and_drawn_examples_are_those_of_the_split_seed(make_data, parquet_folder):
    def list_pictures(**options):
        data = make_data(parquet_folder, limit=9, **options)
        data.setup()
        splits = data.splits.items()
        return {name: [split.decode(index, "L").tobytes() for index in range(len(split))] for name, split in splits}

    assert list_pictures(seed=1, split_seed=3) == list_pictures(seed=2, split_seed=3)
    assert list_pictures(seed=1) == list_pictures(seed=2, split_seed=1)  # without one it is the seed
    assert list_pictures(seed=1, split_seed=3)["val"] != list_pictures(seed=1, split_seed=4)["val"]


def test_order_follows_the_seed_whatever_the_split(make_data, parquet_folder):
    orders = []
    for seed in (1, 2):
        loader = make_data(parquet_folder, seed=seed, split_seed=3).train_dataloader()
        orders.append([batch.tolist() for batch in loader.sampler.list_batches()])
    assert orders[0] != orders[1]


def test_held_out_examples_are_stratified_and_disjoint(make_data, parquet_folder):
    data = make_data(parquet_folder, val_size=0.2)
    data.setup()
    train, val = data.splits["train"], data.splits["val"]
    assert np.bincount(val.labels).tolist() == [4, 4, 4]
    assert np.bincount(train.labels).tolist() == [16, 16, 16]
    pictures = {
        name: {bytes(image.numpy().data) for image in split.decode_all("RGB")} for name, split in data.splits.items()
    }
    assert not pictures["train"] & pictures["val"]
    assert len(pictures["train"] | pictures["val"]) == 60


def test_limit_draws_from_all_classes(make_data, parquet_folder):
    data = make_data(parquet_folder, limit=9)
    data.setup()
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 9, "val": 9, "test": 9}
    assert len(set(data.splits["train"].labels)) > 1


@pytest.mark.parametrize("channels", [1, 3])
def test_generated_images_can_be_told_apart(channels):
    transform = BatchTransform([0.5] * channels, [0.25] * channels)
    data = ImageDataModule(
        None, transform, image_size=16, num_channels=channels, batch_size=8, val_size=5000, num_classes=7, limit=70
    )
    images, labels = gather(data.test_dataloader())
    assert images.shape == (70, channels, 16, 16)
    assert labels.bincount().tolist() == [10] * 7
    train, train_labels = gather(data.train_dataloader())
    means = torch.stack([train[train_labels == label].mean(0) for label in range(7)])
    nearest = torch.cdist(images.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == labels).float().mean() > 0.9
    assert not torch.equal(images, gather(data.val_dataloader())[0])


def test_generated_images_depend_on_the_seed_only(make_data):
    first, same, other = (gather(make_data(limit=16, seed=seed).test_dataloader())[0] for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "image"}, "no column 'image' in train of .*; there are img, label"),
        ({"label_column": "fine_label"}, "no column 'fine_label' in train of .*; there are img, label"),
        ({"image_column": "label", "label_column": "img"}, "column 'label' of .* holds no images but Class"),
        ({"label_column": "img"}, "must hold a class number in every row"),
        ({"num_classes": 2}, "label 2 in column 'label' of train of .* is outside the 2 classes"),
        ({"train_split": "practice"}, "no split 'practice' in .*; there are train, test"),
        ({"val_split": "validation"}, "no split 'validation' in .*; there are train, test"),
        ({"val_size": 60}, r"data.val_size=60 must leave examples on both sides of train of .* \(60\)"),
        ({"val_size": 0.001}, "data.val_size=0.001 must leave"),
        ({"val_size": 5, "val_split": "test"}, "give one of data.val_split=test and data.val_size=5, the other null"),
        ({"batch_size": 0}, "data.batch_size=0 must be at least 1"),
        ({"batch_size": 64}, "48 examples are too few for data.batch_size=64"),
        ({"num_classes": 0}, "data.num_classes=0 must be at least 1"),
        ({"split_seed": -1}, "data.split_seed=-1 must be at least 0"),
        ({"num_channels": 4}, "data.num_channels=4 must be one of 1, 3"),
    ],
)  # fmt: skip
def test_bad_options_are_told_in_one_line(make_data, parquet_folder, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_data(parquet_folder, **options).train_dataloader()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["no/such/folder", "nobody/nothing", "nothing"])
def test_missing_folder(make_data, path):
    with pytest.raises(ValueError, match="no such folder") as caught:
        make_data(path).setup()
    assert "\n" not in str(caught.value)
    assert path in str(caught.value)


def test_folder_without_data(make_data, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no data set that can be read"):
        make_data(tmp_path / "empty").setup()


def test_empty_split(make_data, parquet_folder):
    make_dataset(0).to_parquet(parquet_folder / "test.parquet")
    with pytest.raises(ValueError, match='"test" corresponds to no data'):
        make_data(parquet_folder).setup()
    with pytest.raises(ValueError, match="train of here is empty"):
        open_split(datasets.DatasetDict(train=make_dataset(0)), "train", "img", "label", 3, "here")


def test_negative_and_missing_labels(make_data, tmp_path):
    for name, labels in (("negative", [0, -1, 1]), ("missing", [0, None, 1])):
        folder = tmp_path / name
        folder.mkdir()
        for split in ("train", "test"):
            make_dataset(3, labels=labels).to_parquet(folder / f"{split}.parquet")
    with pytest.raises(ValueError, match=r"label -1 in column 'label' of train of .* is outside the 3 classes"):
        make_data(tmp_path / "negative").setup()
    with pytest.raises(ValueError, match="must hold a class number in every row"):
        make_data(tmp_path / "missing").setup()


def test_undeclared_classes(make_data, tmp_path):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    for split in ("train", "test"):
        make_dataset(12).cast(features).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match=r"declares no classes; set data.num_classes"):
        make_data(tmp_path, num_classes=None).setup()


@pytest.mark.parametrize("in_memory", [True, False])
def test_unreadable_image(make_data, parquet_folder, in_memory):
    rows = make_dataset(20).cast_column("img", datasets.Image(decode=False)).to_dict()
    rows["img"][7]["bytes"] = rows["img"][7]["bytes"][:40]
    features = make_dataset(1).features
    datasets.Dataset.from_dict(rows, features=features).to_parquet(parquet_folder / "test.parquet")
    data = make_data(parquet_folder, **({} if in_memory else {"transform": ImageTransform(12)}))
    with pytest.raises(ValueError, match="unreadable image: row 7 of test of"):
        gather(data.test_dataloader())
    rows["img"][7]["bytes"] = b"no image"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(parquet_folder / "train.parquet")
    data = make_data(parquet_folder, val_size=10, batch_size=1)
    with pytest.raises(ValueError, match=r"row 7 of train of .* \(cut short or not an image\)"):
        [gather(loader) for loader in (data.train_dataloader(), data.val_dataloader())]


def test_images_of_several_sizes_do_not_go_into_memory(make_data, class_folder):
    data = make_data(class_folder, image_column="image", num_classes=2, val_split="validation")
    with pytest.raises(ValueError, match=r"differ in size \(21x21 in row 1\); use data=image_folder"):
        data.train_dataloader()


def test_grey_images_become_coloured_and_back(make_data, tmp_path):
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                grey = np.full((12, 12), 50 * number, dtype=np.uint8)
                Image.fromarray(grey).save(tmp_path / split / name / f"{number}.png")
    options = {"image_column": "image", "num_classes": 2, "val_size": 2, "batch_size": 2}
    images, _ = gather(make_data(tmp_path, **options).test_dataloader())
    assert images.shape == (6, 3, 12, 12)
    transform = BatchTransform([0.5], [0.25])
    grey_again, _ = gather(make_data(tmp_path, num_channels=1, transform=transform, **options).test_dataloader())
    assert torch.equal(grey_again, images[:, :1])


def test_workers_without_use_are_told(make_data):
    with pytest.warns(UserWarning, match=r"data.num_workers=2 has no effect"):
        make_data(num_workers=2)


def test_loader_speed_is_measured_over_epochs(make_data):
    assert measure_loader(make_data(limit=16), num_batches=5) > 0
