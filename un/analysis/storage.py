"""The recorder's Parquet files in a run folder.

Parquet cannot be appended to. While a run trains, its rows go to parts, `activation_stats/<first step>.parquet`; at its
end they become one file, `activation_stats.parquet`. Columns: step, layer, site, channels, and those of
`un.analysis.recorder`; missing values are null.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from un.analysis.recorder import StatisticsRow
from un.files import replace_file

NAME = "activation_stats"
INTEGERS = {"step": "int64", "layer": "int32", "channels": "int32"}


class StatisticsFiles:
    """Writes rows in such a way that a kill at any time leaves whole files.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts = folder / NAME
        self.whole = folder / f"{NAME}.parquet"

    def append(self, rows: Sequence[StatisticsRow]) -> None:
        """Writes rows as a part of their own."""
        if rows:
            self.parts.mkdir(parents=True, exist_ok=True)
            _write(make_frame(rows), self.parts / f"{rows[0]['step']:09d}.parquet")

    def exists(self) -> bool:
        return bool(self._list())

    def keep_until(self, step: int) -> None:
        """Drops the rows of later steps, which a run that resumes there will write again."""
        if not self.exists():
            return
        frame = self.read()
        if frame["step"].max() <= step:
            return
        kept = frame[frame["step"] <= step]
        if kept.empty:
            self.whole.unlink(missing_ok=True)
        else:
            _write(kept, self.whole)
        shutil.rmtree(self.parts, ignore_errors=True)

    def join(self) -> None:
        """Makes one file of all parts."""
        if self.parts.is_dir():
            _write(self.read(), self.whole)
            shutil.rmtree(self.parts)

    def read(self) -> pd.DataFrame:
        """Returns all rows by step and layer; one step's rows once, even after a kill between the halves of `join`.

        Raises:
            ValueError: there are none, or a file is damaged.
        """
        paths = self._list()
        if not paths:
            raise ValueError(f"{self.folder} holds no {NAME}.parquet: train with callbacks={NAME}")
        frames = []
        for path in paths:
            try:
                frames.append(pd.read_parquet(path))
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{path} is damaged: {error}") from None
        frame = pd.concat(frames, ignore_index=True)
        return frame.drop_duplicates(["step", "layer"]).sort_values(["step", "layer"], ignore_index=True)

    def _list(self) -> list[Path]:
        whole = [self.whole] if self.whole.exists() else []
        return [*whole, *sorted(self.parts.glob("*.parquet"))]


def make_frame(rows: Sequence[StatisticsRow]) -> pd.DataFrame:
    """Returns rows as a table; NaN and infinities stay, which tell a diverging layer from one without the statistic."""
    frame = pd.DataFrame(rows)
    numbers = [name for name in frame.columns if name not in {*INTEGERS, "site"}]
    return frame.astype({**INTEGERS, **dict.fromkeys(numbers, "float32")})


def _write(frame: pd.DataFrame, path: Path) -> None:
    with replace_file(path, binary=True) as file:
        frame.to_parquet(file, index=False)
