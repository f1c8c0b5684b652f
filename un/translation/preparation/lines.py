"""Text files line by line, and folders of them. A line ends with a line feed and with nothing else.

Python's own notion also splits at carriage returns, which the corpora hold inside sentences; the two sides would then
fall out of step.

A text is a folder of `<split>.<language>` files, line n of one the translation of line n of the other. In the end it
has `train`, `valid` and `test`, and in `raw/` the untokenised lines of `valid` and `test`.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

RAW = "raw"
SPLITS = ("train", "valid", "test")
CHUNK = 500  # lines sent to a worker at a time

Languages = tuple[str, str]


def name_files(folder: Path, split: str, languages: Languages) -> list[Path]:
    """Returns the two files of a split."""
    return [folder / f"{split}.{language}" for language in languages]


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a UTF-8 file without their line feeds."""
    if not path.is_file():
        raise ValueError(f"no file {path}")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8").removesuffix("\n")
            except UnicodeDecodeError as error:
                byte = f"byte 0x{line[error.start]:02x}"
                raise ValueError(f"{path} is not UTF-8: {byte} in line {number}; convert the file") from error


def read_rows(*paths: Path) -> Iterator[tuple[str, ...]]:
    """Yields the lines of several files side by side.

    Raises:
        ValueError: A file has more lines than another; the counts are named.
    """
    for row in itertools.zip_longest(*(read_lines(path) for path in paths)):
        if None in row:
            counts = ", ".join(f"{path} {sum(1 for _ in read_lines(path)):,}" for path in paths)
            raise ValueError(f"unequal numbers of lines: {counts}")
        yield row


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Writes lines, each with a line feed, and returns their number."""
    return write_rows([path], ((line,) for line in lines))


def write_rows(paths: Iterable[Path], rows: Iterable[tuple[str, ...]]) -> int:
    """Writes the n-th entry of every row as a line of the n-th file, and returns the number of rows."""
    count = 0
    with ExitStack() as stack:
        files = []
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.append(stack.enter_context(path.open("w", encoding="utf-8", newline="\n")))
        for row in rows:
            for file, line in zip(files, row, strict=True):
                file.write(f"{line}\n")
            count += 1
    return count


def map_lines(function: Callable[[str], str], lines: Iterable[str], workers: int) -> Iterator[str]:
    """Applies a function to every line, in order.

    Args:
        function: Must be picklable if there are several workers.
        lines: Taken as the workers need them, so that a large corpus is never in memory as a whole.
        workers: Processes; 1 stays in this one.
    """
    if workers == 1:
        yield from map(function, lines)
        return
    with get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(function, lines, chunksize=CHUNK)
