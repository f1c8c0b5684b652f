"""A run keeps its words and classes: nobody asks the training data again, and other ones are refused in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.integration.commands import Outcome, find_run, run_here
from tests.integration.texts import TEXT, write_text
from un.command.errors import UserError
from un.finished import load_run
from un.reports.result import read_result

IMAGES = ("data=image_folder", "data.num_channels=1", "data.image_size=8", "data.num_workers=0", "data.batch_size=4")
IMAGES += ("+data.transform.mean=[0.5]", "+data.transform.std=[0.25]", "data.val_split=null", "data.val_size=4")
IMAGES += ("trainer=cpu", "trainer.max_epochs=1", "model.depth=1")


def write_images(folder: Path, split: str, names: dict[str, int]) -> Path:
    """Squares, as bright as a name's number."""
    for name, brightness in names.items():
        (folder / split / name).mkdir(parents=True)
        for number in range(6):
            image = Image.fromarray(np.full((8, 8), 40 * brightness + number, dtype=np.uint8))
            image.save(folder / split / name / f"{number}.png")
    return folder


def check_same(outcome: Outcome, run: Path) -> None:
    assert outcome.code == 0, outcome
    recorded = read_result(run / "result.json").metrics
    found = json.loads((run / "eval.json").read_text())["metrics"]
    assert found == pytest.approx({name: recorded[name] for name in found}, rel=1e-5)


@pytest.fixture
def copied(translator: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The run and the text, whose path in the config is that of the copy."""
    run, text = Path(shutil.copytree(translator[0], tmp_path / "run")), tmp_path / "text"
    shutil.copytree(translator[1], text)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(translator[1]), str(text)))
    return run, text


def test_a_translator_is_tested_whatever_its_text_is_now(copied: tuple[Path, Path]) -> None:
    run, text = copied
    names = {"dict.de.txt", "dict.en.txt", "bpe.codes", "preparation.json"}
    assert {path.name for path in (run / "preprocessor").iterdir()} == names
    write_text(text, "Katze")
    outcome = run_here("eval.py", f"run={run}")
    check_same(outcome, run)
    assert "the same to the last bit" in outcome.output
    for path in (*text.glob("train.*"), *text.glob("valid.*")):
        path.unlink()
    check_same(run_here("eval.py", f"run={run}", "fold=true"), run)


def test_a_translator_is_folded_and_exported_without_text(copied: tuple[Path, Path]) -> None:
    run, text = copied
    shutil.rmtree(text)
    assert run_here("scripts/fold.py", f"run={run}").code == 0
    assert run_here("scripts/export.py", f"run={run}", "format=torch_export").code == 0
    description = json.loads((run / "exports/folded.pt2.json").read_text())
    beside = run / "exports" / description["preprocessor"]
    for path in (run / "preprocessor").iterdir():
        assert (beside / path.name).read_bytes() == path.read_bytes()
    run_here("eval.py", f"run={run}").check_error(f"data.path='{text}': no such folder")
    tested = pd.read_csv(run / "translations/test.tsv", sep="\t", keep_default_na=False)
    graph = run / "exports/folded.pt2"
    for weights in (run / "checkpoints/folded.ckpt", graph):
        assert load_run(run, weights).predict(tested["source"].tolist()) == tested["hypothesis"].tolist()
    graph.with_name("folded.pt2.json").write_text(json.dumps({**description, "digest": "0"}))
    with pytest.raises(UserError, match=r"folded.pt2 is not of the weights of .*run, which do the rest"):
        load_run(run, graph)


def test_a_translator_does_not_continue_in_other_words(translator: tuple[Path, Path], tmp_path: Path) -> None:
    run = translator[0]
    other = write_text(tmp_path / "other", "Katze")
    arguments = (*TEXT, f"data.path={other}", f"paths.runs={tmp_path / 'runs'}")
    best = run / "checkpoints/best.ckpt"
    run_here("train.py", *arguments, f"init_weights={best}").check_error(
        f"init_weights={best}", "vocabulary", "in place"
    )
    run_here("eval.py", f"run={run}", "+data.bpe_merges=7").check_error("data.bpe_merges=7", "data.bpe_merges=40")


def test_classes_keep_their_numbers(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", "train", {"bright": 5, "dark": 1, "grey": 3})
    write_images(images, "test", {"bright": 5, "dark": 1, "grey": 3})
    outcome = run_here("train.py", *IMAGES, f"data.path={images}", f"paths.runs={tmp_path / 'runs'}")
    assert outcome.code == 0, outcome
    run = find_run(tmp_path / "runs")
    content = json.loads((run / "preprocessor/images.json").read_text())
    assert content == {"num_classes": 3, "label_names": ["bright", "dark", "grey"], "mean": [0.5], "std": [0.25]}
    shutil.rmtree(images / "train")
    check_same(run_here("eval.py", f"run={run}"), run)
    losses = []
    for number, pair in enumerate(({"dark": 1, "grey": 3}, {"bright": 5, "grey": 3}, {"bright": 5, "dark": 1})):
        folder = write_images(tmp_path / f"two-of-three-{number}", "test", pair)
        assert run_here("eval.py", f"run={run}", f"data.path={folder}").code == 0
        losses.append(json.loads((run / "eval.json").read_text())["metrics"]["test/loss"])
    assert len(set(losses)) == 3
    assert np.mean(losses) == pytest.approx(read_result(run / "result.json").metrics["test/loss"])
    other = write_images(tmp_path / "other", "test", {"dark": 1, "pale": 4})
    run_here("eval.py", f"run={run}", f"data.path={other}").check_error("'pale'", "it knows bright, dark, grey")
