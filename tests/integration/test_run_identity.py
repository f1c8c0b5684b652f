"""What makes a run another one: its data, and not where or how it is executed."""

import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.integration.commands import FAST, find_folders, run_here
from un.reports.result import read_result
from un.sweeps.launch import expand


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_where_and_how_a_run_is_executed_is_no_part_of_its_name(tmp_path: Path) -> None:
    command = ("train.py", f"paths.runs={tmp_path}", *FAST, "global_batch_size=32")
    first = run_here(*command)
    assert "global batch 32 = 8 x 1 process x 4 accumulated batches; norm.count=updates" in first.output
    (folder,) = find_folders(tmp_path).values()
    result = read_result(folder / "result.json")
    assert (result.execution["global_batch_size"], result.execution["precision"], result.steps) == (32, "32-true", 3)
    assert "the same to the last bit" in run_here("eval.py", f"run={folder}").output
    for elsewhere in (("trainer=ddp", "trainer.devices=2"), ("trainer.precision=bf16-mixed", "trainer.num_nodes=2")):
        assert "is finished already: nothing to do" in run_here(*command, *elsewhere).output
    refused = run_here(*command, "data.batch_size=12")
    refused.check_error("global_batch_size=32 is not a multiple of data.batch_size=12 x 1 process")


def make_pictures(folder: Path, seed: int) -> Path:
    """Random pictures of two classes."""
    random = np.random.default_rng(seed)
    for split, name, number in product(("train", "test"), ("cat", "dog"), range(4)):
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


OWN_DATA = (
    *("data=image_folder", "data.image_size=8", "data.val_split=null", "data.val_size=4", "data.batch_size=2"),
    *("data.num_workers=0", "model.depth=1", "trainer.max_epochs=1", "trainer.accelerator=cpu"),
)


def test_a_run_is_of_its_data(tmp_path: Path) -> None:
    """Two folders are two runs; one whose files have changed is refused, by a finished run and by one to resume."""
    folders = [make_pictures(tmp_path / name / "pictures", seed) for seed, name in enumerate("ab")]
    commands = [("train.py", f"paths.runs={tmp_path}/runs", *OWN_DATA, f"data.path={folder}") for folder in folders]
    for command in commands:
        outcome = run_here(*command)
        assert outcome.code == 0, outcome
        assert "finished: " in outcome.output
    results = [read_result(path) for path in (tmp_path / "runs").rglob("result.json")]
    assert {result.data["path"] for result in results} == {str(folder) for folder in folders}
    assert "is finished already: nothing to do" in run_here(*commands[0]).output
    shutil.copy(folders[0] / "train/cat/0.png", folders[0] / "train/cat/9.png")
    run_here(*commands[0]).check_error("holds a run of other data", "16 files", "17 files", "force=true")
    assert "is finished already" in run_here(*commands[1]).output
    for path in (tmp_path / "runs").rglob("result.json"):
        path.unlink()
    run_here(*commands[0]).check_error("holds a run of other data", "16 files", "17 files", "force=true")
    assert "resuming" in run_here(*commands[1]).output
    forced = run_here(*commands[0], "force=true")
    assert forced.code == 0, forced
    assert "finished: " in forced.output


@pytest.mark.parametrize("mistake", ["optimizer.lr=-1", "data.path=/nowhere", "task.ema_decay=2"])
def test_what_fails_before_it_trains_is_not_interrupted(mistake: str, tmp_path: Path) -> None:
    command = ("train.py", f"paths.runs={tmp_path}", *FAST)
    assert run_here(*command, mistake).code == 2
    assert run_here(*command).code == 0
    listed = {run.status for run in expand([f"paths.runs={tmp_path}", *FAST, mistake])}
    assert listed == {"failed"}
    assert len(find_folders(tmp_path)) == 1
