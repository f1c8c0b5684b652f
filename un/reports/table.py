"""Tables from run folders: one row per experiment and norm, averaged over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from un.reports.result import Result, read_result

# Overrides that the table's other columns already show, or that change where and not what.
HIDDEN = ("experiment", "norm", "seed", "paths", "data.path", "logger", "force", "hydra", "callbacks", "trainer.enable")


def read_results(folders: Iterable[Path]) -> list[Result]:
    """Reads every result.json below the folders.

    Raises:
        ValueError: there is none, or one is damaged.
    """
    paths = sorted(path for folder in folders for path in folder.rglob("result.json"))
    if not paths:
        raise ValueError(f"no result.json below {', '.join(map(str, folders))}")
    return [read_result(path) for path in paths]


def tabulate_results(results: Sequence[Result]) -> pd.DataFrame:
    """One row per (experiment, norm, overrides) with the test metrics' mean and standard deviation over seeds.

    A diverged run counts in `diverged` and not in the mean.
    """
    rows = []
    for result in results:
        overrides = [o for o in result.overrides if not o.startswith(HIDDEN) or o.startswith("norm.")]
        test = {name: value for name, value in result.metrics.items() if name.startswith("test/")}
        rows.append(
            {
                "experiment": result.experiment,
                "norm": " ".join([str(result.norm["choice"]), *sorted(overrides)]),
                "diverged": result.status == "diverged",
                "minutes": result.wall_time_seconds / 60,
                **test,
            }
        )
    frame = pd.DataFrame(rows)
    metrics = [str(column) for column in frame.columns if str(column).startswith("test/")]
    groups = frame.groupby(["experiment", "norm"], sort=False)
    table = groups.size().rename("runs").to_frame()
    table["diverged"] = groups["diverged"].sum()
    for metric in metrics:
        table[metric] = groups[metric].mean()
        if (table["runs"] > 1).any():
            table[f"{metric} ±"] = groups[metric].std()
    table["minutes"] = groups["minutes"].mean()
    return table.dropna(axis="columns", how="all").reset_index()


def render_markdown(table: pd.DataFrame, digits: int = 2) -> str:
    """A Markdown table; missing cells stay empty."""
    cells = table.map(lambda v: "" if pd.isna(v) else f"{v:.{digits}f}" if isinstance(v, float) else str(v))
    lines = [list(cells.columns), ["---"] * len(cells.columns), *cells.values.tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
