"""What makes a run another one: its data, and not where or how it is executed."""

import shutil
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from tests.integration.commands import FAST, find_folders, run_here
from un.reports.result import read_result
from un.sweeps.launch import expand


def test_where_and_how_a_run_is_executed_is_no_part_of_its_name(tmp_path: Path) -> None:
    command = ("train.py", f"paths.runs={tmp_path}", *FAST, "global_batch_size=32", "model.depth=1")
    first = run_here(*command)
    assert "global batch 32 = 8 x 1 process x 4 accumulated batches; norm.count=updates" in first.output
    (folder,) = find_folders(tmp_path).values()
    result = read_result(folder / "result.json")
    assert (result.execution["global_batch_size"], result.execution["precision"], result.steps) == (32, "32-true", 3)
    assert "the same to the last bit" in run_here("eval.py", f"run={folder}").output
    for elsewhere in (("trainer=ddp", "trainer.devices=2"), ("trainer.precision=bf16-mixed", "trainer.num_nodes=2")):
        assert "is finished already: nothing to do" in run_here(*command, *elsewhere).output
    refused = run_here(*command, "data.batch_size=12")
    refused.check_error("global_batch_size=32", "data.batch_size=12 x 1 process")


def make_pictures(folder: Path, seed: int) -> Path:
    """Random pictures of two classes."""
    random = np.random.default_rng(seed)
    for split, name, number in product(("train", "test"), ("cat", "dog"), range(4)):
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def test_a_run_is_of_its_data(tmp_path: Path) -> None:
    """Two folders are two runs; one whose files have changed is refused, by a finished run and by one to resume."""
    sizes = ("data.image_size=8", "data.val_split=null", "data.val_size=4", "data.batch_size=2", "model.depth=1")
    common = (f"paths.runs={tmp_path}/runs", "data=image_folder", *sizes, "data.num_workers=0", *FAST)
    folders = [make_pictures(tmp_path / name / "pictures", seed) for seed, name in enumerate("ab")]
    commands = [("train.py", *common, f"data.path={folder}") for folder in folders]
    for command in commands:
        outcome = run_here(*command)
        assert "finished: " in outcome.output, outcome
    results = [read_result(path) for path in (tmp_path / "runs").rglob("result.json")]
    assert {result.data["path"] for result in results} == {str(folder) for folder in folders}
    shutil.copy(folders[0] / "train/cat/0.png", folders[0] / "train/cat/9.png")
    run_here(*commands[0]).check_error("holds a run of other data", "16 files", "17 files", "force=true")
    assert "is finished already: nothing to do" in run_here(*commands[1]).output
    for path in (tmp_path / "runs").rglob("result.json"):
        path.unlink()
    run_here(*commands[0]).check_error("holds a run of other data", "16 files", "17 files", "force=true")
    assert "resuming" in run_here(*commands[1]).output
    assert "finished: " in run_here(*commands[0], "force=true").output


def test_what_fails_before_it_trains_is_not_interrupted(tmp_path: Path) -> None:
    mistakes = "optimizer.lr=-1", "data.path=/nowhere", "task.ema_decay=2"
    for mistake in mistakes:
        command = ("train.py", f"paths.runs={tmp_path}", *FAST, mistake)
        assert run_here(*command).code == 2
        assert {run.status for run in expand(command[1:])} == {"failed"}
    assert find_folders(tmp_path) == {}
