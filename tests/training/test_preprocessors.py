"""What the data mean to a model stays with its run, for any task; the toy's is one word."""

import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from tests.training.toy import ToyPreprocessor, make_config, run_toy
from un.command.errors import CONFIG_FOLDER, UserError
from un.finished.open_run import open_run
from un.training.assembly import build
from un.training.preprocessors import keep_preprocessor
from un.training.run_folder import RunFolder


def run(path: Path, *overrides: str) -> RunFolder:
    run_toy(path, "trainer.max_epochs=1", *overrides)
    return RunFolder(path)


def open_with(folder: RunFolder, *overrides: str) -> ToyPreprocessor:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("eval", [f"run={folder.path}", *overrides])
    data = open_run(config).data
    return data.preprocessor


def read_meaning(folder: RunFolder) -> str:
    return ToyPreprocessor.load(folder.preprocessor).meaning


def test_a_run_keeps_it_and_is_opened_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = run(tmp_path, "data.meaning=first")
    assert read_meaning(folder) == "first"
    assert open_with(folder, "+data.meaning=first").meaning == "first"
    with pytest.raises(UserError, match=r"data.meaning=second comes too late: .* trained with data.meaning=first"):
        open_with(folder, "+data.meaning=second")
    (folder.preprocessor / "meaning.txt").write_text("changed")  # what is there counts, not what the data would give
    assert open_with(folder).meaning == "changed"
    (folder.preprocessor / "meaning.txt").unlink()
    with pytest.raises(UserError, match=r"preprocessor cannot be used: meaning.txt is missing"):
        open_with(folder)
    shutil.rmtree(folder.preprocessor)
    assert open_with(folder).meaning == "first"
    assert "kept no preprocessor: it is made anew from the training data" in caplog.text


def test_resuming_with_other_data_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path)
    folder.result.unlink()
    run(tmp_path)
    folder.result.unlink()
    before = folder.last.read_bytes()
    (folder.preprocessor / "meaning.txt").write_text("another")
    with pytest.raises(
        UserError, match=r"was started with other data \(they have meaning 'largest of three' instead of"
    ):
        run(tmp_path)
    assert folder.last.read_bytes() == before
    assert read_meaning(folder) == "another"
    shutil.rmtree(folder.checkpoints)  # as if it was killed before its first checkpoint
    run(tmp_path)
    assert read_meaning(folder) == "largest of three"


def test_one_process_writes_and_all_compare(tmp_path: Path) -> None:
    data, folder = build(make_config(tmp_path))[0], RunFolder(tmp_path / "run")
    keep_preprocessor(data, folder, resumes=False, writes=False)
    assert not folder.preprocessor.exists()
    keep_preprocessor(data, folder, resumes=False, writes=True)
    other = build(make_config(tmp_path, "data.meaning=another"))[0]
    for writes in (True, False):
        keep_preprocessor(data, folder, resumes=True, writes=writes)
        with pytest.raises(UserError, match="meaning 'another' instead of 'largest of three'"):
            keep_preprocessor(other, folder, resumes=True, writes=writes)


def test_initial_weights_are_of_the_same_meaning(tmp_path: Path) -> None:
    best = run(tmp_path / "trained").best
    link, elsewhere = tmp_path / "link.ckpt", tmp_path / "elsewhere.ckpt"
    link.symlink_to(best)
    shutil.copy(best, elsewhere)

    def start(weights: Path, meaning: str) -> DictConfig:
        return make_config(tmp_path, f"init_weights={weights}", f"data.meaning={meaning}")

    build(start(best, "largest of three"))
    build(start(elsewhere, "other"))  # nothing is known about it
    for weights in (best, link):
        with pytest.raises(UserError, match=r"init_weights=.* cannot be used: meaning 'other' instead of 'largest of"):
            build(start(weights, "other"))
