"""The recorder's Parquet files in a run folder.

A Parquet file cannot be appended to, so `activation_stats.parquet` is a folder with a file for each time that rows were
written, which pandas and pyarrow read as one table. Columns: step, layer, site, channels, and those of
`un.analysis.recorder`; missing values are null.
"""

from __future__ import annotations

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
        self.folder = folder / f"{NAME}.parquet"

    def append(self, rows: Sequence[StatisticsRow]) -> None:
        """Writes rows as a file of their own, named by their first step."""
        if not rows:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with replace_file(self.folder / f"{rows[0]['step']:09d}.parquet", binary=True) as file:
            make_frame(rows).to_parquet(file, index=False)

    def exists(self) -> bool:
        return bool(self._list())

    def keep_until(self, step: int) -> None:
        """Drops the files that begin after a step at which rows were written: a run that resumes there repeats them."""
        for path in self._list():
            if int(path.stem) > step:
                path.unlink()

    def read(self) -> pd.DataFrame:
        """Returns all rows by step and layer.

        Raises:
            ValueError: there are none, or a file is damaged.
        """
        frames = []
        for path in [self.folder] if self.folder.is_file() else self._list():  # one file in runs of early versions
            try:
                frames.append(pd.read_parquet(path))
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{path} is damaged: {error}") from None
        if not frames:
            raise ValueError(f"{self.folder.parent} holds no {self.folder.name}: train with callbacks={NAME}")
        return pd.concat(frames, ignore_index=True)

    def _list(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))


def make_frame(rows: Sequence[StatisticsRow]) -> pd.DataFrame:
    """Returns rows as a table; NaN and infinities stay, which tell a diverging layer from one without the statistic."""
    frame = pd.DataFrame(rows)
    numbers = [name for name in frame.columns if name not in {*INTEGERS, "site"}]
    return frame.astype({**INTEGERS, **dict.fromkeys(numbers, "float32")})
