"""Files and folders: found, written whole or not at all, and errors of the disk that name the file they met."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def find_run_files(root: Path, name: str) -> Iterator[Path]:
    """Yields the files of a name below a folder; subfolders of a run folder (checkpoints, retrofit) are not entered."""
    for folder, subfolders, files in os.walk(root):
        if name in files:
            subfolders.clear()
            yield Path(folder) / name


@contextlib.contextmanager
def replace_file(path: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """Opens a file that takes the place of `path` once all of it is on the disk; until then an older one stays.

    Raises:
        OSError: Of the disk or the folder, naming `path`; what was written so far is removed.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with name_in_errors(path):
        try:
            with temporary.open("wb") if binary else temporary.open("w", encoding="utf-8", newline="") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder to write files into, which takes the place of `path` once all of them are on the disk.

    Raises:
        OSError: Of the disk or the folder, naming `path`; what was written so far is removed.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with name_in_errors(path):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            for written in temporary.iterdir():
                with written.open("rb+") as file:
                    os.fsync(file.fileno())
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextlib.contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Names a file in the errors of writing to it, where Python's own say only that no space is left.

    Raises:
        OSError: Of the same kind, with `path`, also in place of the RuntimeError that torch makes of it.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError) or reason.errno is None:
            raise
        raise OSError(reason.errno, reason.strerror, str(path)) from error
