"""Image folders: what the folders say is what is read, whatever they are called and whatever lies beside."""

import shutil
import unicodedata

import pytest
from PIL import Image

from tests.vision.image_samples import draw_images
from un.vision.sources import open_split, read_source
from un.vision.transforms import ImageTransform

SPLITS = ("train", "val", "test")
WANTED = [(split,) for split in SPLITS]
OPTIONS = {"transform": ImageTransform(8), "image_column": "image", "num_classes": None, "batch_size": 1}


def list_contents(root, splits=WANTED):
    """Split -> class -> colours, of which the red tells the number of the class as `make_folder` was given it."""
    contents = {}
    source = read_source(str(root), "image", "label", splits)
    for name, split in source.items():
        names = split.features["label"].names
        opened = open_split(source, name, "image", "label", len(names), str(root))
        contents[name] = {class_name: [] for class_name in names}
        for row, label in enumerate(opened.labels):
            contents[name][names[label]].append(opened.decode(row, "RGB").getpixel((0, 0))[:2])
    return contents


def expect(*classes):
    return {split: {name: [(number, 0), (number, 1)] for number, name in enumerate(classes)} for split in SPLITS}


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("test", ("train", "validation", "test", "data", "0", "10", "2", "__init__", "-x")),
        ("train [1] x*", ("a [1]", "b*", "c?d", "Käse", "猫", "it's", '"x"', "a,b", "k=v", "a\\b", "~", "a::b")),
    ],
)
def test_names_of_classes_and_of_the_folder(make_folder, monkeypatch, name, classes):
    root = make_folder(*classes, name=name)
    assert list_contents(root) == list_contents(root, None) == expect(*classes)
    monkeypatch.chdir(root.parent)
    assert list_contents(name) == expect(*classes)


def test_deeper_levels_belong_to_the_class(make_folder):
    root = make_folder("cat", "dog", count=0)
    for split in SPLITS:
        for number, name in enumerate(("cat", "dog")):
            for index, below in enumerate(("monday/test", "train")):
                (root / split / name / below).mkdir(parents=True)
                Image.new("RGB", (8, 8), (number, index, 0)).save(root / split / name / below / "0.PNG")
    assert list_contents(root) == expect("cat", "dog")


def test_splits_in_other_spellings(make_folder, make_data):
    root = make_folder("cat", "dog", splits=("training", "dev", "Test"))
    data = make_data(root, val_split="validation", **OPTIONS)
    assert data.model_arguments() == {"num_classes": 2, "img_size": 12, "in_chans": 3}
    assert [data.splits[name].name.split()[0] for name in SPLITS] == ["training", "dev", "Test"]
    assert [labels.item() for _, labels in data.test_dataloader()] == [0, 0, 1, 1]
    shutil.rmtree(root / "Test")
    data = make_data(root, val_split="dev", **OPTIONS)
    data.setup()
    assert data.splits["test"].name.startswith("dev of")  # validation serves as test where there is no other


@pytest.mark.parametrize("has_validation", [True, False])
def test_a_tenth_is_held_out_where_there_is_no_validation_split(make_folder, make_data, has_validation):
    splits = ("train", "val", "test") if has_validation else ("train", "test")
    root = make_folder("cat", "dog", splits=splits, count=10)
    both = {"val_split": "validation", "val_size": 0.1, **OPTIONS}
    data = make_data(root, **both)
    data.setup()
    assert [len(data.splits[name]) for name in SPLITS] == ([20, 20, 20] if has_validation else [18, 2, 20])
    opened = make_data(root, **both)
    opened.use_preprocessor(data.preprocessor)  # as of a finished run, which opens its splits one by one
    for name in ("val", "test", "train"):
        assert opened.open_split(name).rows.tolist() == data.splits[name].rows.tolist()


def test_what_lies_beside_does_no_harm(make_folder, caplog):
    root = make_folder("cat", "dog")
    caplog.set_level("INFO")
    for folder in (root, root / "train", root / "train/cat"):
        for name in ("notes.txt", "metadata.csv", "Thumbs.db", ".DS_Store", "._0.png", "labels.parquet"):
            (folder / name).write_text("{}")
        for name in (".ipynb_checkpoints", "__MACOSX"):
            shutil.copytree(root / "val/cat", folder / name)
    (root / "train/preview.png").write_bytes(b"")
    shutil.copytree(root / "train/cat", root / "docs/figures")
    assert list_contents(root) == expect("cat", "dog")
    assert f"{root}/train: left out 4 files without the suffix of an image" in caplog.text


def test_links(make_folder, tmp_path):
    """To the whole, a split, a class, a folder below and a file; one that leads up again leads nowhere."""
    elsewhere = make_folder("cat", "dog", name="elsewhere")
    root = tmp_path / "root"
    (root / "train/dog").mkdir(parents=True)
    (root / "val").symlink_to(elsewhere / "val")
    (root / "test").symlink_to(elsewhere / "test")
    (root / "train/cat").symlink_to(elsewhere / "train/cat")
    (root / "train/dog/below").symlink_to(elsewhere / "train/dog")
    (root / "train/dog/up").symlink_to("..")
    (elsewhere / "train/dog/back").symlink_to(root / "train/dog")
    (tmp_path / "link").symlink_to(root)
    assert list_contents(tmp_path / "link") == expect("cat", "dog")
    (root / "train/dog/below").unlink()
    for index in range(2):
        (root / f"train/dog/{index}.png").symlink_to(elsewhere / f"train/dog/{index}.png")
    assert list_contents(root) == expect("cat", "dog")


def test_accents_in_either_coding(make_folder):
    """As a Mac and Linux write them."""
    root = make_folder("Käse", "Brot")
    (root / "test" / "Käse").rename(root / "test" / unicodedata.normalize("NFD", "Käse"))
    assert list_contents(root) == expect("Käse", "Brot")


def flatten(split):
    """Puts the images of the classes straight into the folder of the split."""
    for path in split.glob("*/0.png"):
        path.rename(split / path.name)
    for path in split.glob("*/"):
        shutil.rmtree(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train/zebra").mkdir(), "train/zebra holds no image; add some or remove the folder"),
        (lambda root: shutil.rmtree(root / "test/dog"), "train has 1 class folder.* that test lacks, such as 'dog'"),
        (lambda root: flatten(root / "test"), "test holds no images in class folders, test/<class>/<image>"),
    ],
)
def test_folders_that_do_not_fit_are_refused(make_folder, spoil, message):
    root = make_folder("cat", "dog")
    spoil(root)
    with pytest.raises(ValueError, match=message) as caught:
        list_contents(root)
    assert str(root) in str(caught.value)


def test_images_on_another_level(make_folder):
    """What the Hugging Face library would take for splits and classes all the same."""
    root = make_folder("cat", "dog")
    for wrong in (root.parent, root / "train"):
        with pytest.raises(ValueError, match=r"no images in <split>/<class>/ for any split of train, test"):
            read_source(str(wrong), "image", "label", [("train",), ("test", "validation")])


def test_labels_in_a_table_beside_the_images(tmp_path):
    """The other form of image folder that the Hugging Face library knows."""
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for number, image in enumerate(draw_images(4)):
            Image.fromarray(image).save(tmp_path / split / f"{number}.png")
        table = "".join(f"{number}.png,{number % 2}\n" for number in range(4))
        (tmp_path / split / "metadata.csv").write_text(f"file_name,label\n{table}")
    source = read_source(str(tmp_path), "image", "label")
    assert open_split(source, "test", "image", "label", 2, "here").labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_files_are_named(make_folder, make_data, num_workers):
    root = make_folder("cat", "dog")
    broken = root / "train/dog/0.png"
    broken.write_bytes(broken.read_bytes()[:50])
    data = make_data(root, val_split="validation", num_workers=num_workers, **OPTIONS)
    with pytest.raises(ValueError, match=rf"unreadable image: row 2 of train of .*, {broken} \("):
        list(data.train_dataloader())
