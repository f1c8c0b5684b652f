"""A finished run is used: for text and images, with its own, folded and exported weights, and without its data."""

import csv
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.integration.commands import REPOSITORY, Outcome, run_here
from un.finished import load_run
from un.reports.result import read_result

PROGRAM = "scripts/predict.py"


def read_csv(outcome: Outcome) -> list[dict[str, str]]:
    assert outcome.code == 0, outcome
    return list(csv.DictReader(io.StringIO(outcome.output)))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, one of them larger and one in a folder of its own, and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    for number, digit in enumerate(load_digits().images[:4]):
        image = Image.fromarray(np.round(digit * 255 / 16).astype(np.uint8))
        image = image.resize((20, 20)) if number == 1 else image
        image.save(folder / ("more" if number == 3 else ".") / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def alone(translator: tuple[Path, Path], tmp_path: Path) -> Path:
    """The run of the translator without anything else, as on another machine."""
    run = Path(shutil.copytree(translator[0], tmp_path / "run"))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(translator[1]), str(tmp_path / "nowhere")))
    return run


def test_new_sentences_are_translated_as_those_of_the_test(alone: Path, tmp_path: Path) -> None:
    tested = pd.read_csv(alone / "translations/test.tsv", sep="\t", keep_default_na=False)
    run = load_run(alone)
    assert run.predict(tested["source"].tolist()) == tested["hypothesis"].tolist()
    assert run.predict([]) == run.predict([" ", ""])[:0]
    lines = tmp_path / "lines.de"
    lines.write_text("\n".join([tested["source"][2], "", tested["source"][0]]) + "\n", encoding="utf-8")
    outcome = run_here(PROGRAM, f"run={alone}", f"input={lines}", f"output={tmp_path / 'new/lines.en'}")
    assert outcome.code == 0, outcome
    expected = [tested["hypothesis"][2], "", tested["hypothesis"][0]]
    assert (tmp_path / "new/lines.en").read_text().split("\n")[:-1] == expected


def test_a_sentence_on_the_command_line_and_on_standard_input(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "Hund 3, sieht [dnuH] = 3 ."
    (translation,) = load_run(alone).predict([sentence])
    outcome = run_here(PROGRAM, f"run={alone}", f"input={sentence}")
    assert (outcome.code, outcome.output, outcome.errors) == (0, f"{translation}\n", "")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{sentence}\n\n"))
    assert run_here(PROGRAM, f"run={alone}", "input=-").output == f"{translation}\n\n"


def test_text_that_cannot_be_translated(alone: Path, tmp_path: Path) -> None:
    run_here(PROGRAM, f"run={alone}", "input=texts/new.de").check_error(
        "input=texts/new.de: no such file (/", "if it is the text to translate, give it by input=-"
    )
    long = tmp_path / "long.de"
    long.write_text(f"Hund .\n{'Hund ' * 3000}\n")
    run_here(PROGRAM, f"run={alone}", f"input={long}").check_error("1 of 2 pairs of the input", "first in line 2")
    run_here(PROGRAM, f"run={alone}", "input=Hund", "topk=2").check_error("topk=2 has no meaning for this run")
    (tmp_path / "empty").write_text("")
    run_here(PROGRAM, f"run={alone}", f"input={tmp_path / 'empty'}").check_error("holds no lines")


def test_images_are_classified(finished: Path, images: Path) -> None:
    rows = read_csv(run_here(PROGRAM, f"run={finished}", f"input={images}", "topk=3"))
    assert [Path(row["image"]).relative_to(images).as_posix() for row in rows[::3]] == [
        *("0.png", "1.png", "2.png"),
        "more/3.png",
    ]
    assert [row["rank"] for row in rows[:4]] == ["1", "2", "3", "1"]
    (one,) = read_csv(run_here(PROGRAM, f"run={finished}", f"input={images / '2.png'}"))
    assert {**one, "image": ""} == {**rows[6], "image": ""}
    opened = load_run(finished).predict([Image.open(images / "2.png")], topk=10)[0]
    assert opened[one["class"]] == pytest.approx(float(one["probability"]), abs=1e-6)
    assert sum(opened.values()) == pytest.approx(1)
    assert list(opened.values()) == sorted(opened.values(), reverse=True)


def test_images_of_the_test_are_classified_as_there(finished: Path) -> None:
    """The accuracy of the run's test is that of its images one by one."""
    run = load_run(finished)
    data, limit = run.run.data, run.run.config.trainer.limit_test_batches
    labels = [label for _, (_, labels) in zip(range(limit), data.test_dataloader(), strict=False) for label in labels]
    found = run.predict([data.open_split("test").decode(index, "L") for index in range(len(labels))])
    names = data.preprocessor.label_names
    right = [next(iter(classes)) == names[label] for classes, label in zip(found, labels, strict=True)]
    assert 100 * np.mean(right) == pytest.approx(read_result(finished / "result.json").metrics["test/acc1"], rel=1e-5)


def test_images_that_cannot_be_classified(finished: Path, images: Path, tmp_path: Path) -> None:
    place = f"run={finished}"
    run_here(PROGRAM, place, "input=nowhere.png").check_error("input=nowhere.png: no such image or folder (/")
    run_here(PROGRAM, place, f"input={images / 'notes.txt'}").check_error("unreadable image", "notes.txt", "cut short")
    (tmp_path / "empty").mkdir()
    run_here(PROGRAM, place, f"input={tmp_path / 'empty'}").check_error("no file below this folder has the suffix")
    run_here(PROGRAM, place, f"input={images}", "topk=11").check_error("topk=11 must be between 1 and 10")
    run_here(PROGRAM, place, f"input={images}", "weights=x.onnx").check_error("there is no x.onnx")
    run_here(PROGRAM, place).check_error("input is missing: a sentence, a text file")
    run_here(PROGRAM, f"run={tmp_path}", "input=x").check_error("is not a run folder")


def test_the_snippet_of_the_page(trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (REPOSITORY / "docs/runs.md").read_text(encoding="utf-8")
    (tmp_path / "runs/digits_vit/norm=un").mkdir(parents=True)
    (tmp_path / "runs/digits_vit/norm=un/seed=0").symlink_to(trained)
    for number, name in enumerate(("one", "two")):
        shutil.copy(images / f"{number}.png", tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(snippet, names)
    assert len(names["run"].predict(["one.png"], topk=2)[0]) == 2
