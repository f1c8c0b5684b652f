"""Table and figure of the inference benchmark, from its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.common import Row
from benchmarks.inference_models import ARMS, ELEMENTARY, IDENTITY, UNFOLDED
from un.reports.measurements import FOLDED, LAYER_NORM, MODELS

COLORS = {LAYER_NORM: "#555555", ELEMENTARY: "#b07aa1", UNFOLDED: "#f28e2b", FOLDED: "#4e79a7", IDENTITY: "#111111"}
LABELS = {
    LAYER_NORM: "LayerNorm",
    ELEMENTARY: "LayerNorm in elementary operations",
    UNFOLDED: "UN",
    FOLDED: "UN, folded",
    IDENTITY: "no norms (lower bound)",
}
MARKERS = {LAYER_NORM: "o", ELEMENTARY: "o", UNFOLDED: "o", FOLDED: "D", IDENTITY: "|"}
HEADER = (
    *("model", "engine", "batch", "LN ms", "LN elementary", "UN", "UN folded", "identity"),
    *("folded / LN", "bound / LN", "folded / bound"),
)


def read_rows(folder: Path) -> list[Row]:
    """A row for every arm of every file, models in their order.

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


def group_rows(rows: Sequence[Row]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows by what was measured, then by arm."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("model", "engine", "device", "dtype", "batch"))
        groups.setdefault(key, {})[str(row["arm"])] = row
    return groups


def render_table(rows: Sequence[Row]) -> str:
    """Folded UN against LayerNorm in Markdown: median milliseconds, and medians of the ratios of adjacent calls."""
    lines = [f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
    for (model, engine, device, dtype, batch), arms in group_rows(rows).items():
        where = engine + ("" if (device, dtype) == ("cpu", "float32") else f", {device}, {dtype}")
        times = [f"{1e3 * arms[arm]['seconds']:.3g}" for arm in ARMS]
        folded, identity = arms[FOLDED], arms[IDENTITY]
        ratios = (folded["ratio_to_layernorm"], identity["ratio_to_layernorm"], folded["ratio_to_identity"])
        lines.append(f"| {' | '.join([model, where, str(batch), *times, *(f'{r:.3f}' for r in ratios)])} |")
    return "\n".join(lines)


def draw_figure(rows: Sequence[Row], path: Path) -> Path:
    """Draws the time of every arm beside LayerNorm's, medians with the 5th to 95th percentile; returns the file."""
    groups = group_rows(rows)
    figure, axes = plt.subplots(figsize=(8, 1.3 + 0.55 * len(groups)), layout="constrained")
    for line, arms in enumerate(groups.values()):
        base = arms[LAYER_NORM]["seconds"]
        for number, arm in enumerate(ARMS):
            found, height = arms[arm], line + 0.13 * (number - 2)
            low, middle, high = (found[key] / base for key in ("seconds_p5", "seconds", "seconds_p95"))
            axes.plot([low, high], [height, height], color=COLORS[arm], linewidth=1, alpha=0.6)
            style = {"color": COLORS[arm], "marker": MARKERS[arm], "linestyle": "none", "markeredgewidth": 1.5}
            axes.plot(middle, height, markersize=5, label=LABELS[arm] if line == 0 else None, **style)
    names = []
    for model, engine, device, dtype, batch in groups:
        extra = "" if (device, dtype) == ("cpu", "float32") else f", {device}, {dtype}"
        names.append(f"{model}, {engine}{extra}, batch {batch}")
    axes.set_yticks(range(len(groups)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color=COLORS[LAYER_NORM], linewidth=0.6, linestyle=":")
    axes.set_xlabel("time relative to LayerNorm's median; lines: 5th to 95th percentile")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
