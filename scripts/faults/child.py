"""Runs `train.py` and kills itself while one file is written: `child.py <file> <moment> <arguments of train.py>`.

A file such as last.ckpt (or what its name begins with) is written beside its place and renamed; the moment is inside
(half of it is on the disk), before or after the rename. metrics.csv is also appended to: append, with half a row
written.
"""

import os
import runpy
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

import un.files  # noqa: E402

OFTEN_WRITTEN = ("metrics.csv", "last.ckpt")  # these are met the second time, when there is an older one


def main() -> None:
    """Arms the file and runs the program."""
    name, moment, *arguments = sys.argv[1:]
    turns = 2 if name in OFTEN_WRITTEN else 1
    if moment == "append":
        arm_append(turns)
    else:
        un.files.os = arm(name, moment, turns)  # type: ignore[attr-defined]
    sys.argv = ["train.py", *arguments]
    runpy.run_path(str(REPOSITORY / "train.py"), run_name="__main__")


def arm(name: str, moment: str, turns: int) -> SimpleNamespace:
    """Returns what stands for the module `os` where files are written."""
    left = [turns]

    def is_due(path: str) -> bool:
        is_meant = Path(path).name.startswith(name)
        left[0] -= is_meant
        return is_meant and left[0] == 0

    def fsync(descriptor: int) -> None:
        if moment == "inside" and is_due(os.readlink(f"/proc/self/fd/{descriptor}")):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            die()
        os.fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        due = moment != "inside" and is_due(str(target))
        if due and moment == "before":
            die()
        os.replace(source, target)
        if due:
            die()

    return SimpleNamespace(fsync=fsync, replace=replace)


def arm_append(turns: int) -> None:
    """Breaks off in a row of metrics.csv."""
    from un.runtime.metrics_file import MetricsFile

    append, left = MetricsFile._append, [turns]

    def break_off(self: MetricsFile, row: Mapping[str, float]) -> None:
        left[0] -= 1
        if left[0] == 0:
            assert self._path is not None
            with self._path.open("a") as file:
                file.write("0,")
            die()
        append(self, row)

    MetricsFile._append = break_off  # type: ignore[method-assign]


def die() -> None:
    """Ends this process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
