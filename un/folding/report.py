"""What `fold_norms` did to each norm."""

from __future__ import annotations

from dataclasses import dataclass

FOLDED = "folded"
AFFINE = "affine folded"
MULTIPLY = "multiply"
MULTIPLY_ADD = "multiply-add"
KEPT = "kept"


@dataclass(frozen=True)
class FoldRow:
    """One norm.

    Attributes:
        site: dotted name, several joined by commas where they are one norm.
        norm: class and channels.
        outcome: "folded" (nothing is left), "affine folded" (weight and bias are gone, the rest of a norm that is not
            offline stays), "multiply" or "multiply-add" (a `ScaleShift` is left), "kept" (untouched).
        rule: of the specification's section 10: R1 linear layers that read it, R2 convolutions that read it, R3 the
            layer that feeds it, R4 as R1 where the layers that read it are the model's last, R5 as R1 where the norm
            reads a concatenation of several positions' channels, R7 an untied output projection, R8 the stream of a
            post-norm model, cumulative or local; empty where nothing moved.
        into: names of the weights and biases that took the map.
        stays: why and what, empty where nothing does.
        largest_scale: largest |scale| of the norm's own map.
        condition: max|scale| / min|scale| of the product carried on in the stream (R8), else None.
    """

    site: str
    norm: str
    outcome: str
    rule: str
    into: tuple[str, ...]
    stays: str
    largest_scale: float
    condition: float | None = None

    def describe(self) -> str:
        """The row's last column: where the map went and what stays."""
        parts = []
        if self.into:
            more = f" and {len(self.into) - 2} more" if len(self.into) > 3 else ""
            parts.append(f"into {', '.join(self.into[: 2 if more else 3])}{more}")
        if self.condition is not None:
            parts.append(f"condition {self.condition:.3g}")
        if self.stays:
            parts.append(self.stays)
        return "; ".join(parts)


@dataclass(frozen=True)
class FoldReport:
    """What `fold_norms` did; `str(report)` is a printable table.

    Attributes:
        rows: every norm, in module order.
        notes: what else changed or is worth knowing.
        difference: largest difference of the outputs on the example inputs over the largest output, in float64.
        difference_in_type: the same in the model's own type.
    """

    rows: tuple[FoldRow, ...]
    notes: tuple[str, ...]
    difference: float
    difference_in_type: float

    @property
    def folded(self) -> tuple[FoldRow, ...]:
        """The norms of which nothing is left."""
        return tuple(row for row in self.rows if row.outcome == FOLDED)

    @property
    def remaining(self) -> tuple[FoldRow, ...]:
        """The norms of which something is left."""
        return tuple(row for row in self.rows if row.outcome != FOLDED)

    @property
    def largest_scale(self) -> float:
        """Largest |scale| of any norm's map."""
        return max((row.largest_scale for row in self.rows), default=0.0)

    @property
    def condition(self) -> float:
        """Largest condition of a product carried on in a stream; 1 where there is none."""
        return max((row.condition for row in self.rows if row.condition is not None), default=1.0)

    def __str__(self) -> str:
        header = ("site", "norm", "outcome", "rule", "scale", "")
        table = [header, *map(_format_row, self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        summary = (
            f"{len(self.folded)} of {len(self.rows)} norms folded; outputs differ by {self.difference:.1e} of the "
            f"largest in float64, {self.difference_in_type:.1e} in the model's type"
        )
        return "\n".join([*lines, *self.notes, summary])


def _format_row(row: FoldRow) -> tuple[str, str, str, str, str, str]:
    return row.site, row.norm, row.outcome, row.rule, f"{row.largest_scale:.3g}", row.describe()
