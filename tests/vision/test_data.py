import datasets
import numpy as np
import pytest
import torch

from tests.vision.image_samples import draw_images, make_dataset
from un.vision.data import ImageDataModule
from un.vision.sources import DIGITS, open_split
from un.vision.transforms import BatchTransform, ImageTransform


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
    with pytest.raises(ValueError, match=r"declares no classes; set data.num_classes"):
        make_data(folder, num_classes=None).setup()


def test_digits_have_one_test_split_whatever_the_seed():
    first, other = (
        ImageDataModule(DIGITS, BatchTransform([0.305], [0.376]), 8, 1, batch_size=64, val_size=0.1, seed=seed)
        for seed in (0, 1)
    )
    assert torch.equal(gather(first.test_dataloader())[0], gather(other.test_dataloader())[0])
    assert {name: len(split) for name, split in first.splits.items()} == {"train": 1293, "val": 144, "test": 360}
    images, _ = gather(first.train_dataloader())
    assert images.shape[1:] == (1, 8, 8)
    assert abs(images.mean()) < 0.02
    assert abs(images.std() - 1) < 0.02


def test_held_out_and_drawn_examples_follow_the_split_seed_and_the_order_the_seed(make_data, parquet_folder):
    def list_contents(**options):
        data = make_data(parquet_folder, limit=9, **options)
        order = [batch.tolist() for batch in data.train_dataloader().sampler.list_batches()]
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 9, "val": 9, "test": 9}
        return order, {name: split.rows.tolist() for name, split in data.splits.items()}

    order, rows = list_contents(seed=1, split_seed=3)
    other_order, same_rows = list_contents(seed=2, split_seed=3)
    same_order, other_rows = list_contents(seed=1, split_seed=4)
    assert order == same_order != other_order
    assert rows == same_rows
    assert rows["val"] != other_rows["val"]
    assert list_contents(seed=3)[1] == rows  # without a split seed it is the seed


def test_training_without_augmentation_shuffles_what_a_test_prepares(make_data, parquet_folder):
    data = make_data(parquet_folder, batch_size=48, num_repeats=2, augment=False)
    shuffled, _ = gather(data.train_dataloader())
    plain, _ = gather(data.make_loader("train", training=False))
    assert not torch.equal(shuffled, plain)
    torch.testing.assert_close(*(images.sum((1, 2, 3)).sort().values for images in (shuffled, plain)))


def test_held_out_examples_are_stratified_and_disjoint(make_data, parquet_folder):
    data = make_data(parquet_folder, val_size=0.2)
    data.setup()
    train, val = data.splits["train"], data.splits["val"]
    assert np.bincount(val.labels).tolist() == [4, 4, 4]
    assert sorted([*train.rows, *val.rows]) == list(range(60))


@pytest.mark.parametrize("channels", [1, 3])
def test_generated_images_can_be_told_apart_and_depend_on_the_seed_only(channels):
    transform = BatchTransform([0.5] * channels, [0.25] * channels)
    options = {"image_size": 16, "num_channels": channels, "batch_size": 8, "num_classes": 7, "limit": 70}
    data, same, other = (ImageDataModule(None, transform, val_size=1, seed=seed, **options) for seed in (0, 0, 1))
    images, labels = gather(data.test_dataloader())
    assert images.shape == (70, channels, 16, 16)
    assert labels.bincount().tolist() == [10] * 7
    train, train_labels = gather(data.train_dataloader())
    means = torch.stack([train[train_labels == label].mean(0) for label in range(7)])
    nearest = torch.cdist(images.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == labels).float().mean() > 0.9
    assert not torch.equal(images, gather(data.val_dataloader())[0])
    assert torch.equal(images, gather(same.test_dataloader())[0])
    assert not torch.equal(images, gather(other.test_dataloader())[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "image"}, "no column 'image' in train of .*; there are img, label"),
        ({"image_column": "label", "label_column": "img"}, "column 'label' of .* holds no images but Class"),
        ({"label_column": "img"}, "must hold a class number in every row"),
        ({"num_classes": 2}, "label 2 in column 'label' of train of .* is outside the 2 classes"),
        ({"train_split": "practice"}, "no split 'practice' in .*; there are train, test"),
        ({"val_split": ""}, "no split '' in .*; there are train, test"),
        ({"val_size": 60}, r"data.val_size=60 must leave examples on both sides of train of .* \(60\)"),
        ({"val_split": None}, "data.val_split and data.val_size are both null: give one of them"),
        ({"batch_size": 64}, "48 examples are too few for data.batch_size=64"),
        ({"split_seed": -1}, "data.split_seed=-1 must be at least 0"),
        ({"num_classes": 1}, "parquet has one class only: there is nothing to tell apart"),
        ({"num_channels": 4}, "data.num_channels=4 must be one of 1, 3"),
        ({"num_channels": 1}, "data.num_channels=1, but data.transform.mean and std are of 3"),
    ],
)  # fmt: skip
def test_bad_options_are_told_in_one_line(make_data, parquet_folder, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_data(parquet_folder, **options).train_dataloader()
    assert "\n" not in str(caught.value)


def test_folders_without_data(make_data, tmp_path):
    with pytest.raises(ValueError, match=r"no/such/folder.*no such folder"):
        make_data("no/such/folder").setup()
    with pytest.raises(ValueError, match="holds no data set that can be read"):
        make_data(tmp_path).setup()
    with pytest.raises(ValueError, match="train of here is empty"):
        open_split(datasets.DatasetDict(train=make_dataset(0)), "train", "img", "label", 3, "here")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1, 1], "label -1 in column 'label' of train of .* is outside the 3 classes"),
        ([0, None, 1], "must hold a class number in every row"),
    ],
)
def test_negative_and_missing_labels(labels, message):
    source = datasets.DatasetDict(train=make_dataset(3, labels=labels))
    with pytest.raises(ValueError, match=message):
        open_split(source, "train", "img", "label", 3, "here")


@pytest.mark.parametrize("options", [{}, {"transform": ImageTransform(12)}])
def test_unreadable_images(make_data, parquet_folder, options):
    rows = make_dataset(20).cast_column("img", datasets.Image(decode=False)).to_dict()
    cut = rows["img"][7]["bytes"][:40]
    for content, message in ((cut, "row 7 of test of"), (b"text", r"row 7 .* \(cut short or not an image\)")):
        rows["img"][7]["bytes"] = content
        datasets.Dataset.from_dict(rows, features=make_dataset(1).features).to_parquet(parquet_folder / "test.parquet")
        with pytest.raises(ValueError, match=f"unreadable image: {message}"):
            gather(make_data(parquet_folder, **options).test_dataloader())


def test_images_of_several_sizes_do_not_go_into_memory(make_data, make_folder):
    data = make_data(make_folder("cat", "dog"), image_column="image", num_classes=2, val_split="val")
    with pytest.raises(ValueError, match=r"differ in size \(9x9 in row 1\); use data=image_folder"):
        data.train_dataloader()
