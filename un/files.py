"""Files that are there whole or not at all, and errors of the disk that say which file they met."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def replace_file(path: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """Opens a file that takes the place of `path` when all of it is on the disk; until then an older one stays.

    Raises:
        OSError: of the disk or the folder, naming `path`; what was written so far is removed.
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
def name_in_errors(path: Path) -> Iterator[None]:
    """Names a file in the errors of writing to it, where Python's own say only that no space is left.

    Raises:
        OSError: of the same kind, with `path`. torch raises a RuntimeError on top of it, which is replaced, too.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError) or reason.errno is None:
            raise
        raise OSError(reason.errno, reason.strerror, str(path)) from error
