"""What `fold_norms` did to each norm."""

from __future__ import annotations

from dataclasses import dataclass

from un.folding.apply import Plan
from un.folding.frames import Form
from un.folding.graph import LinearUse

FOLDED = "folded"
AFFINE = "affine folded"
MULTIPLY = "multiply"
MULTIPLY_ADD = "multiply-add"
KEPT = "kept"

NAMES_LISTED = 3  # of the weights that took a map


@dataclass(frozen=True)
class FoldRow:
    """One norm.

    Attributes:
        site: dotted name, several joined by commas where they are one norm.
        norm: class and channels.
        outcome: "folded" (nothing is left), "affine folded" (weight and bias are gone, the rest of a norm that is not
            offline stays), "multiply" or "multiply-add" (a `ScaleShift` is left), "kept" (untouched).
        rule: as in docs/folding.md: R1 linear layers that read it, R2 convolutions that read it, R3 the layer that
            feeds it, R7 an untied output projection, R8 the stream of a post-norm model, cumulative or local; empty
            where nothing moved.
        into: names of the weights and biases that took the map.
        stays: what stays and why, empty where nothing does.
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

    def list_cells(self) -> list[str]:
        """Returns the row of the printed table; its last cell says where the map went and what stays."""
        parts = []
        if self.into:
            more = len(self.into) - NAMES_LISTED
            parts.append(f"into {', '.join(self.into[:NAMES_LISTED])}" + (f" and {more} more" if more > 0 else ""))
        if self.condition is not None:
            parts.append(f"condition {self.condition:.3g}")
        if self.stays:
            parts.append(self.stays)
        return [self.site, self.norm, self.outcome, self.rule, f"{self.largest_scale:.3g}", "; ".join(parts)]


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
    def condition(self) -> float:
        """Largest condition of a product carried on in a stream; 1 where there is none."""
        return max((row.condition for row in self.rows if row.condition is not None), default=1.0)

    def __str__(self) -> str:
        table = [["site", "norm", "outcome", "rule", "scale", ""], *(row.list_cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
        summary = (
            f"{len(self.folded)} of {len(self.rows)} norms folded; outputs differ by {self.difference:.1e} of the "
            f"largest in float64, {self.difference_in_type:.1e} in the model's type"
        )
        return "\n".join([*lines, *self.notes, summary])


def list_rows(plan: Plan) -> tuple[FoldRow, ...]:
    return tuple(_make_row(plan, index) for index, site in enumerate(plan.sites) if not site.is_layer_scale)


def list_notes(plan: Plan) -> tuple[str, ...]:
    notes = [f"{name} was tied and now has its own copy" for name in plan.untied]
    notes += [f"{name} gets a bias" for name in plan.rewrite.new_biases]
    placed = zip(plan.sites, plan.forms, strict=True)
    merged = [site.name for site, form in placed if site.is_layer_scale and form is Form.BACKWARD]
    if merged:
        notes.append(f"R10: {', '.join(merged)} merged into the layers before them")
    filled = sorted({module or "the model" for module, _ in plan.fills})
    if filled:
        notes.append(f"R6: padding in {', '.join(filled)} puts in what the norms before it made of the constant")
    if plan.obstacle:
        notes.append(f"followed and compared in the model's own type: {plan.obstacle}")
    return (*notes, *plan.graph.notes)


def _make_row(plan: Plan, index: int) -> FoldRow:
    site, form = plan.sites[index], plan.forms[index]
    next_norms = plan.solver.list_norm_readers(index) if form is Form.FORWARD else []
    into = (*(plan.sites[reader].name for reader in next_norms), *plan.rewrite.touched.get(index, ()))
    outcome, rule = _name_outcome(plan, index)
    stays = "" if outcome == FOLDED else _explain(plan, index)
    largest = float(site.scale.abs().max()) if site.scale.numel() else 0.0
    condition = None if form is Form.KEEP else plan.frames.conditions.get(index)
    return FoldRow(", ".join(site.names), site.describe(), outcome, rule, into, stays, largest, condition)


def _name_outcome(plan: Plan, index: int) -> tuple[str, str]:
    form = plan.forms[index]
    if form is Form.KEEP:
        return (MULTIPLY_ADD if index in plan.frames.residues else KEPT), ""
    if form is Form.MULTIPLY:
        return MULTIPLY, "R8 local"
    if form is Form.BACKWARD:
        return FOLDED, "R3"
    outcome = FOLDED if plan.sites[index].offline else AFFINE
    if plan.solver.feeds_sum(index):
        return outcome, "R8 cumulative"
    into = plan.rewrite.touched.get(index, ())
    if any(name in plan.untied for name in into):
        return outcome, "R7"
    uses = [source for source in plan.graph.sources if isinstance(source, LinearUse) and source.stored.name in into]
    convolves = bool(uses) and all(use.weight.dim() > 2 for use in uses)
    return outcome, "R2" if convolves else "R1"


def _explain(plan: Plan, index: int) -> str:
    """Says what stays of a norm and why."""
    site, reason = plan.sites[index], plan.reasons.get(index, "")
    if site.obstacle:
        return site.obstacle
    if not plan.solver.calls[index]:
        return "not reached on the example inputs"
    if reason or site.offline:
        return reason
    return "not offline: its normalization of each row stays"
