"""Table and figure of the inference benchmark, from its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import Row
from benchmarks.inference_models import ARMS, ELEMENTARY, IDENTITY, UNFOLDED
from un.reports.measurements import FOLDED, LAYER_NORM, MODELS
from un.reports.rendering import format_table

# arm -> what the figure calls it, its colour and its marker
LOOKS = {
    LAYER_NORM: ("LayerNorm", "#555555", "o"),
    ELEMENTARY: ("LayerNorm in elementary operations", "#b07aa1", "o"),
    UNFOLDED: ("UN", "#f28e2b", "o"),
    FOLDED: ("UN, folded", "#4e79a7", "D"),
    IDENTITY: ("no norms (lower bound)", "#111111", "|"),
}
TIMES = ("LN ms", "LN elementary", "UN", "UN folded", "identity")
HEADER = ("model", "engine", "batch", *TIMES, "folded / LN", "bound / LN", "folded / bound")


def read_rows(folder: Path) -> list[Row]:
    """Returns a row for every arm of every file, models in their order.

    Raises:
        ValueError: there is no file.
    """
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*-batch=*.json"))]
    if not results:
        raise ValueError(f"{folder} holds no results: measure without --table first")
    results.sort(key=lambda r: (r["device"], r["dtype"], MODELS.index(r["model"]), r["engine"], r["batch"]))
    keys = ("model", "engine", "device", "dtype", "batch", "threads", "rounds")
    return [
        {**{key: result[key] for key in keys}, "arm": arm, **{k: v for k, v in found.items() if k != "all_seconds"}}
        for result in results
        for arm, found in result["arms"].items()
    ]


def group_rows(rows: Sequence[Row]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Returns rows by model, engine (with what is unusual about it) and batch, then by arm."""
    groups: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in rows:
        unusual = [str(row[key]) for key in ("device", "dtype") if (row["device"], row["dtype"]) != ("cpu", "float32")]
        key: Any = (row["model"], ", ".join([str(row["engine"]), *unusual]), row["batch"])
        groups.setdefault(key, {})[str(row["arm"])] = row
    return groups


def render_table(rows: Sequence[Row]) -> str:
    """Returns folded UN against LayerNorm: median milliseconds, and medians of the ratios of adjacent calls."""
    lines = []
    for setting, arms in group_rows(rows).items():
        times = [f"{1e3 * arms[arm]['seconds']:.3g}" for arm in ARMS]
        folded, identity = arms[FOLDED], arms[IDENTITY]
        ratios = (folded["ratio_to_layernorm"], identity["ratio_to_layernorm"], folded["ratio_to_identity"])
        lines.append([*setting, *times, *(f"{ratio:.3f}" for ratio in ratios)])
    return format_table(HEADER, lines)


def draw_figure(rows: Sequence[Row], path: Path) -> Path:
    """Draws the time of every arm beside LayerNorm's, medians with the 5th to 95th percentile; returns the file."""
    groups = group_rows(rows)
    figure = Figure(figsize=(8, 1.3 + 0.55 * len(groups)), layout="constrained")
    axes = figure.add_subplot()
    for line, arms in enumerate(groups.values()):
        base = arms[LAYER_NORM]["seconds"]
        for number, arm in enumerate(ARMS):
            label, color, marker = LOOKS[arm]
            height = line + 0.13 * (number - 2)
            low, middle, high = (arms[arm][key] / base for key in ("seconds_p5", "seconds", "seconds_p95"))
            axes.plot([low, high], [height, height], color=color, linewidth=1, alpha=0.6)
            axes.plot(middle, height, marker, color=color, markersize=5, label=label if line == 0 else None)
    names = [f"{model}, {engine}, batch {batch}" for model, engine, batch in groups]
    axes.set_yticks(range(len(groups)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color=LOOKS[LAYER_NORM][1], linewidth=0.6, linestyle=":")
    axes.set_xlabel("time relative to LayerNorm's median; lines: 5th to 95th percentile")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    return path
