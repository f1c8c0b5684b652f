"""What the rows of a calibration set say about a norm: sums over all of them, in float64 and one batch at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 4096  # rows that are in float64 at the same time


class PairMoments:
    """Means, variances and covariance per channel of inputs x and targets y.

    Each batch is centred by its own means before it is merged, so that large means cost no digits (Chan, Golub and
    LeVeque, 1979).

    Args:
        measure_rows: gives one number for each row of x (R, C), to be averaged; None for none.
    """

    def __init__(self, measure_rows: Callable[[Tensor], Tensor] | None = None) -> None:
        self.measure_rows = measure_rows
        self.num_rows = 0
        self.row_mean = 0.0
        self.x_mean = self.y_mean = self.xx = self.xy = self.yy = torch.zeros(0)  # (C,) each; the last three are sums
        self.x_range = self.y_range = (torch.zeros(0), torch.zeros(0))  # smallest and largest, (C,) each

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds rows x and y, (R, C) each."""
        for rows, targets in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            if len(rows):
                self._merge(rows, targets)

    def _merge(self, x: Tensor, y: Tensor) -> None:
        x, y = x.double(), y.double()
        rows = 0.0 if self.measure_rows is None else float(self.measure_rows(x).mean())
        x_range, y_range = (x.amin(0), x.amax(0)), (y.amin(0), y.amax(0))
        x_mean, y_mean = x.mean(0), y.mean(0)
        x, y = x - x_mean, y - y_mean
        xx, xy, yy = (x * x).sum(0), (x * y).sum(0), (y * y).sum(0)
        count, total = len(x), self.num_rows + len(x)
        if self.num_rows:
            share, weight = count / total, count * self.num_rows / total
            x_gap, y_gap = x_mean - self.x_mean, y_mean - self.y_mean
            xx = self.xx + xx + weight * x_gap * x_gap
            xy = self.xy + xy + weight * x_gap * y_gap
            yy = self.yy + yy + weight * y_gap * y_gap
            x_mean, y_mean = self.x_mean + share * x_gap, self.y_mean + share * y_gap
            rows = self.row_mean + share * (rows - self.row_mean)
            x_range, y_range = _widen(self.x_range, x_range), _widen(self.y_range, y_range)
        self.num_rows, self.row_mean, self.x_mean, self.y_mean = total, rows, x_mean, y_mean
        self.xx, self.xy, self.yy, self.x_range, self.y_range = xx, xy, yy, x_range, y_range

    @property
    def x_variance(self) -> Tensor:
        return self.xx / self.num_rows

    @property
    def is_finite(self) -> bool:
        return all(bool(total.isfinite().all()) for total in (self.xx, self.xy, self.yy))

    def solve(self) -> tuple[Tensor, Tensor]:
        """Returns the map y = scale x + shift with the least squared error, each (C,); scale 0 for constant x."""
        scale = torch.where(self.xx > 0, self.xy / self.xx, 0.0)
        return scale, self.y_mean - scale * self.x_mean

    def measure_fit(self, scale: Tensor, shift: Tensor) -> Tensor:
        """Returns R² of a map, (C,): 1 minus its squared error over that of the mean; 1 where y is constant and met."""
        gap = self.y_mean - scale * self.x_mean - shift
        error = self.yy - 2 * scale * self.xy + scale * scale * self.xx + self.num_rows * gap * gap
        return torch.where(self.yy > 0, 1 - error / self.yy, torch.where(error > 0, -torch.inf, 1.0))

    def find_outlier(self) -> tuple[float, float]:
        """Returns the largest distance of an x from its channel's mean, in standard deviations, and the largest |x|."""
        smallest, largest = self.x_range
        distance = _measure_distance(self.x_range, self.x_mean, self.x_variance)
        return distance, float(torch.maximum(largest.abs(), smallest.abs()).max())

    def compare_outliers(self, scale: Tensor, shift: Tensor) -> tuple[float, float]:
        """Returns the largest distances of a y, and of what a map makes of an x, from the mean of y in its deviations.

        Args:
            scale: of the map, (C,).
            shift: of the map, (C,).
        """
        mapped = tuple(scale * end + shift for end in self.x_range)
        variance = self.yy / self.num_rows
        given, made = (_measure_distance(ends, self.y_mean, variance) for ends in (self.y_range, mapped))
        return given, made


def _widen(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    return torch.minimum(first[0], second[0]), torch.maximum(first[1], second[1])


def _measure_distance(ends: tuple[Tensor, ...], mean: Tensor, variance: Tensor) -> float:
    distance = torch.maximum(*((end - mean).abs() for end in ends))
    return float(torch.where(distance > 0, distance / variance.sqrt(), 0.0).max())
