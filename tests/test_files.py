"""Files on a full disk: what was there stays, and the error says which file it was."""

import csv
import errno
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from un.command.errors import describe_error, is_user_error
from un.files import name_in_errors, replace_file, replace_folder
from un.reports.result import write_json
from un.training.callbacks.checkpoints import AtomicCheckpointIO
from un.training.callbacks.metrics_file import MetricsFile

LIMIT = 10_000  # bytes of a file


@pytest.fixture
def _short_files() -> Iterator[None]:
    """Writing more fails as on a full disk, save for the reason; needs no file system of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_checkpoint(path: Path, size: int) -> None:
    AtomicCheckpointIO().save_checkpoint({str(place): torch.zeros(50) for place in range(size // 200)}, path)


def write_numbers(path: Path, size: int) -> None:
    write_json({"a": list(range(size))}, path)


@pytest.mark.usefixtures("_short_files")
@pytest.mark.parametrize("write", [write_checkpoint, write_numbers])
def test_full_disk(write: Callable[[Path, int], None], tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, 200)
    before = path.read_bytes()
    with pytest.raises(OSError, match="File too large") as error:
        write(path, 10 * LIMIT)
    assert error.value.errno == errno.EFBIG
    assert is_user_error(error.value)
    assert describe_error(error.value) == f"{path}: File too large"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    write(path, 200)


def write_folder(path: Path, size: int) -> None:
    with replace_folder(path) as folder:
        (folder / "a").write_text("a")
        (folder / "b").write_bytes(bytes(size))


def read_folder(path: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in path.iterdir()}


@pytest.mark.usefixtures("_short_files")
def test_a_folder_is_replaced_when_all_of_it_is_written(tmp_path: Path) -> None:
    path, left = tmp_path / "new" / "folder", tmp_path / "new" / "folder.tmp"
    left.mkdir(parents=True)
    (left / "half").touch()  # by a process that was killed
    write_folder(path, 200)
    assert read_folder(path) == {"a": 1, "b": 200}
    with pytest.raises(OSError, match="File too large") as error:
        write_folder(path, 10 * LIMIT)
    assert describe_error(error.value) == f"{path}: File too large"
    with pytest.raises(FileNotFoundError), replace_folder(path) as folder:
        shutil.copy("no/such/file", folder)
    assert list(path.parent.iterdir()) == [path]
    assert read_folder(path) == {"a": 1, "b": 200}
    (path / "old").touch()
    write_folder(path, 300)
    assert read_folder(path) == {"a": 1, "b": 300}


@pytest.mark.usefixtures("_short_files")
def test_full_disk_in_the_metrics(tmp_path: Path) -> None:
    """The torn row is dropped when the run resumes."""
    file, trainer = MetricsFile(), mock.Mock(default_root_dir=str(tmp_path), global_step=1)
    file.setup(trainer, mock.Mock(), "fit")
    file.write(trainer, {"a": 1.0})
    with pytest.raises(OSError, match=r"metrics.csv") as error:
        [file.write(trainer, {"a": 1 / 3}) for _ in range(LIMIT)]
    assert describe_error(error.value) == f"{tmp_path / 'metrics.csv'}: File too large"
    file.on_fit_start(trainer, mock.Mock())
    with (tmp_path / "metrics.csv").open(newline="") as rows:
        assert {len(row) for row in csv.reader(rows)} == {3}


def test_errors_of_another_kind_stay() -> None:
    for error in (RuntimeError("a"), OSError("without a number"), KeyError("a")):
        with pytest.raises(type(error)) as raised, name_in_errors(Path("x")):
            raise error
        assert raised.value is error


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as error, replace_file(tmp_path / "file" / "config.yaml"):
        raise AssertionError
    assert describe_error(error.value) == f"{tmp_path}/file/config.yaml: Not a directory"


def test_a_log_that_cannot_be_opened() -> None:
    """As logging's configuration wraps it."""
    error: Any = ValueError("Unable to configure handler 'file'")
    error.__cause__ = OSError(errno.EROFS, "Read-only file system", "/runs/train.log")
    assert describe_error(error) == "/runs/train.log: Read-only file system"
