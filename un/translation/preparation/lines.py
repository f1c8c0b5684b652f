"""Text files line by line. A line ends with a line feed and with nothing else.

Python's own notion also splits at carriage returns, which the corpora hold inside sentences; the two sides would then
fall out of step.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

LINES_AT_ONCE = 20_000  # per worker, held in memory
FEW_LINES = 10_000  # tokenised faster than processes start
CHUNK = 500  # lines sent to a worker at a time


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a UTF-8 file without their line feeds.

    Raises:
        ValueError: the file is not there, or not UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}")
    offset = 0
    with path.open("rb") as file:
        for line in file:
            try:
                yield line.decode("utf-8").removesuffix("\n")
            except UnicodeDecodeError as error:
                byte = offset + error.start
                raise ValueError(f"{path} is not UTF-8: byte {byte} is 0x{line[error.start]:02x}") from error
            offset += len(line)


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Writes lines, each with a line feed; returns how many."""
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for count, line in enumerate(lines, 1):  # noqa: B007  the last number is the count
            file.write(f"{line}\n")
    return count


def write_tables(paths: Iterable[Path], rows: Iterable[tuple[str, ...]]) -> int:
    """Writes the n-th entry of every row as a line of the n-th file; returns the number of rows."""
    count = 0
    with ExitStack() as stack:
        files = []
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.append(stack.enter_context(path.open("w", encoding="utf-8", newline="\n")))
        for count, row in enumerate(rows, 1):  # noqa: B007  the last number is the count
            for file, line in zip(files, row, strict=True):
                file.write(f"{line}\n")
    return count


def read_parallel(*paths: Path) -> Iterator[tuple[str, ...]]:
    """Yields the lines of several files side by side.

    Raises:
        ValueError: a file has more lines than another; both counts are named.
    """
    for row in itertools.zip_longest(*(read_lines(path) for path in paths)):
        if None in row:
            counts = ", ".join(f"{path} {count_lines(path):,}" for path in paths)
            raise ValueError(f"unequal numbers of lines: {counts}")
        yield row


def count_lines(path: Path) -> int:
    """Returns the number of lines, an unfinished last one included."""
    return sum(1 for _ in read_lines(path))


def map_lines(function: Callable[[str], str], lines: Iterable[str], workers: int) -> Iterator[str]:
    """Applies a function to every line, in order.

    Args:
        function: must be picklable if there are several workers.
        lines: taken in portions, so that a large corpus is never in memory as a whole.
        workers: processes, started if there is enough to do; 1 stays in this one.
    """
    lines = iter(lines)
    portion = list(itertools.islice(lines, workers * LINES_AT_ONCE))
    if workers == 1 or len(portion) < FEW_LINES:
        yield from map(function, itertools.chain(portion, lines))
        return
    with get_context("spawn").Pool(workers) as pool:
        while portion:
            yield from pool.map(function, portion, chunksize=CHUNK)
            portion = list(itertools.islice(lines, workers * LINES_AT_ONCE))
