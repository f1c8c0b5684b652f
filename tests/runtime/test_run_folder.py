import multiprocessing
from pathlib import Path

import pytest

from un.runtime.errors import UserError
from un.runtime.run_folder import MAX_NAME_LENGTH, RunFolder, name_run


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "norm=un"),
        (["norm=un", "seed=4", "experiment=e", "force=true", "debug=fast"], "norm=un,debug=fast"),
        (
            ["paths.runs=/x", "data.path=/y", "data.num_workers=3", "logger=[csv,wandb]", "logger.wandb.group=a"],
            "norm=un",
        ),
        (["trainer.enable_progress_bar=false", "hydra/launcher=joblib", "+hydra.verbose=true"], "norm=un"),
        (["optimizer.lr=1e-3", "model.depth=2"], "norm=un,model.depth=2,optimizer.lr=0.001"),
        (["optimizer.lr=1e-3", "optimizer.lr=2e-3"], "norm=un,optimizer.lr=0.002"),
        (["norm.window=[4,1]", "model.name='a/b c'"], "norm=un,model.name=a_b_c,norm.window=4,1"),
        (["+task.extra=1", "~scheduler"], "norm=un,+task.extra=1,~scheduler"),
        (["init_weights='/x/norm=un/best.ckpt'"], "norm=un,init_weights=x_norm=un_best.ckpt"),
        (["+norm={window:2,filtration:False}"], "norm=un,norm.filtration=False,norm.window=2"),
        (["norm.filtration=false", "norm.window=2"], "norm=un,norm.filtration=False,norm.window=2"),
        (["norm.window=4", "+norm={window:[2,1]}"], "norm=un,norm.window=2,1"),
        (["ablation=un_window", "+norm={}"], "norm=un"),
        (["data.path_suffix=a"], "norm=un,data.path_suffix=a"),
    ],
)
def test_name(overrides: list[str], name: str) -> None:
    assert name_run("e", "un", overrides, 4) == f"e/{name}/seed=4"


def test_sweeps_and_single_runs_have_the_same_name() -> None:
    assert name_run("e", "un", ["a.b=1e-3"], 0) == name_run("e", "un", ["a.b=0.001"], 0)


def test_long_names_are_shortened_and_stay_different() -> None:
    names = [name_run("e", "un", [f"model.name={'x' * 300}{number}"], 0) for number in range(2)]
    assert names[0] != names[1]
    assert all(len(part) <= MAX_NAME_LENGTH for name in names for part in name.split("/"))


def test_config_of_another_run(tmp_path: Path) -> None:
    config = {"seed": 0, "optimizer": {"lr": 0.1}, "data": {"path": "/a"}, "trainer": {"accelerator": "gpu"}}
    folder = RunFolder(tmp_path)
    folder.write_config(config)
    folder.checkpoints.mkdir()
    folder.last.touch()
    folder.write_config({**config, "data": {"path": "/b"}, "trainer": {"accelerator": "cpu"}, "force": True})
    assert folder.read_config() == config
    with pytest.raises(UserError, match=r"optimizer.lr was 0.1, is 0.2; surgery.x was None, is 1\).*force=true"):
        folder.write_config({**config, "optimizer": {"lr": 0.2}, "surgery": {"x": 1}})
    with pytest.raises(UserError, match=r"data.path was '/a', is None"):
        folder.write_config({**config, "data": {"path": None}})


def test_config_of_a_run_that_failed_at_once(tmp_path: Path) -> None:
    """Without a checkpoint nothing is there to protect, and the next right command takes the folder."""
    folder = RunFolder(tmp_path)
    folder.write_config({"seed": 0, "data": {"path": "/nowhere"}})
    folder.write_config({"seed": 0, "data": {"path": None}})
    assert folder.read_config() == {"seed": 0, "data": {"path": None}}


def test_clear_removes_what_a_run_left(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config({"seed": 0})
    folder.checkpoints.mkdir()
    folder.last.touch()
    for name in ("result.json", "metrics.csv", "train.log", "mine.txt"):
        (tmp_path / name).touch()
    folder.clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "train.log"]


def _lock(path: Path, queue: "multiprocessing.Queue[str]") -> None:
    try:
        RunFolder(path).lock()
    except UserError as error:
        queue.put(str(error))
    else:
        queue.put("locked")


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    folder: RunFolder | None = RunFolder(tmp_path)
    assert folder is not None
    folder.lock()
    answers = []
    for _ in range(2):
        process = context.Process(target=_lock, args=(tmp_path, queue))
        process.start()
        answers.append(queue.get(timeout=30))
        process.join()
        folder = None  # lets go of it
    assert "is in use" in answers[0]
    assert answers[1] == "locked"
