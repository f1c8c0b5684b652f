"""What `retrofit` did to each norm."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import torch

from un.folding.verify import list_tensors

HEADINGS = ("site", "old", "new", "R² worst", "R² median", "outlier", "by old", "by new", "largest", "rows")


@dataclass(frozen=True)
class RetrofitRow:
    """One norm.

    Attributes:
        site: dotted name, several joined by commas where they are one norm.
        old: class of the norm.
        new: class of what took its place.
        r2_worst: of the map that took its place against what the original model gives there, over the calibration rows:
            1 minus squared error over variance, of the worst channel.
        r2_median: of the channels.
        outlier: largest distance of an input from its channel's mean, in the channel's standard deviations.
        outlier_old: the same of what the original norm gives, in deviations of that.
        outlier_new: the same of what took its place gives, in deviations of what the original gives.
        largest: largest absolute input.
        rows: that were used.
    """

    site: str
    old: str
    new: str
    r2_worst: float
    r2_median: float
    outlier: float
    outlier_old: float
    outlier_new: float
    largest: float
    rows: int

    def list_cells(self) -> tuple[str, ...]:
        """Returns the row of the printed table."""
        fit = (f"{value:.3f}" for value in (self.r2_worst, self.r2_median))
        outliers = (f"{value:.1f}" for value in (self.outlier, self.outlier_old, self.outlier_new))
        return self.site, self.old, self.new, *fit, *outliers, f"{self.largest:.3g}", str(self.rows)


@dataclass(frozen=True)
class RetrofitReport:
    """What `retrofit` did; `str(report)` is a printable table.

    Attributes:
        rows: in the order of the forward.
        method: of the fit.
        difference: root mean square of the change of the outputs on calibration batches, relative to that of the
            outputs around their mean.
        notes: what else there is to say.
    """

    rows: tuple[RetrofitRow, ...]
    method: str
    difference: float
    notes: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Returns everything as plain values."""
        norms = [dict(zip(RetrofitRow.__dataclass_fields__, astuple(row), strict=True)) for row in self.rows]
        return {"method": self.method, "difference": self.difference, "norms": norms, "notes": list(self.notes)}

    def __str__(self) -> str:
        table = [HEADINGS, *(row.list_cells() for row in self.rows)]
        widths = [max(len(cells[column]) for cells in table) for column in range(len(HEADINGS))]
        lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)) for cells in table]
        total = f"{len(self.rows)} norms taken out by {self.method}; outputs changed by {self.difference:.3g} of their"
        return "\n".join([*(line.rstrip() for line in lines), *self.notes, f"{total} spread"])


class OutputDifference:
    """Sums how far outputs of two models are apart."""

    def __init__(self) -> None:
        self.error = self.spread = 0.0

    def add(self, expected: Any, actual: Any) -> None:
        """Adds the outputs of one batch."""
        for left, right in zip(list_tensors(expected), list_tensors(actual), strict=True):
            if left.is_floating_point():
                left, right = left.double(), right.double()
                used = left.isfinite()  # logits of what cannot be, as of padding, are minus infinity
                self.error += float((left - right)[used].square().sum())
                self.spread += float((left - left[used].mean())[used].square().sum())

    @property
    def relative(self) -> float:
        """The root mean square of the difference, over that of the expected outputs around their mean."""
        return (self.error / max(self.spread, torch.finfo(torch.float64).tiny)) ** 0.5
