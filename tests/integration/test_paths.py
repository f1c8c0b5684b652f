"""Paths with everything in them that a shell or Hydra knows a meaning for, as values of every program."""

from pathlib import Path

import pytest
from PIL import Image

from tests.integration.commands import run_here
from tests.vision.image_samples import draw_images

NAME = 'it\'s [1] "a", k=v & $x #1 {b} (c)~ ü中%\\'
TINY = ("debug=fast", "trainer.max_steps=1", "trainer.accelerator=cpu", "callbacks.progress_bar=null")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images in class folders."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for split in ("train", "val", "test"):
        for name in ("train", "a [1]"):
            folder = tmp_path / NAME / "data" / split / name
            folder.mkdir(parents=True)
            for number, image in enumerate(draw_images(4, size=8)):
                Image.fromarray(image).save(folder / f"{number}.png")
    return tmp_path / NAME


def run_right(script: str, *arguments: str) -> str:
    outcome = run_here(script, *arguments)
    assert outcome.code == 0, outcome
    return outcome.output


def test_every_program_takes_any_path(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.parent)
    data = ("data=image_folder", f"data.path={NAME}/data", "data.image_size=8", "data.batch_size=4")
    run_right("train.py", f"paths.runs={place}/runs", *TINY, *data, "data.num_workers=0")
    (result,) = (place / "runs").rglob("result.json")
    run = result.parent
    assert "the same to the last bit" in run_right("eval.py", f"run={run}", f"data.path={place}/data")
    run_right("scripts/fold.py", f"run={run.relative_to(place.parent)}", f"output={NAME}/folded.ckpt")
    assert (place / "folded.ckpt").is_file()
    run_right("scripts/analyse.py", f"run={place}/runs", f"output={place}/figures")
    run_right("scripts/report.py", str(place / "runs"), f"--output={place}/report")
    weights = f"init_weights={run}/checkpoints/best.ckpt"
    (place / "configs/norm").mkdir(parents=True)
    (place / "configs/norm/mine.yaml").write_text("_target_: un.norms.UnifiedNorm\n_partial_: true\n")
    sweep = ("-m", "--config-dir", f"{NAME}/configs", f"paths.runs={place}/more", "norm=mine", "seed=1,2")
    run_right("train.py", *sweep, *TINY, *data, "data.num_workers=0", weights)
    assert len(list((place / "more").rglob("norm=mine*/*/result.json"))) == 2
    run_here("train.py", "--config-dir=/nowhere").check_error("--config-dir /nowhere: no such folder")
    run_here("train.py", "--config-name=mine").check_error("--config-name is not supported: choose", "experiment=")
    listed = run_right("scripts/reproduce.py", "table=un_window", "--dry-run", f"paths.runs={place}/runs", weights)
    assert f"{place}/runs/" in listed
