"""Turns a plan into the rows and notes of a report."""

from __future__ import annotations

from torch import Tensor

from un.folding.plan import Plan
from un.folding.report import AFFINE, FOLDED, KEPT, MULTIPLY, MULTIPLY_ADD, FoldRow
from un.folding.solver import Form

NOT_REACHED = "not reached on the example inputs"


def tabulate(plan: Plan) -> tuple[tuple[FoldRow, ...], tuple[str, ...]]:
    """The rows of a plan's report, and its notes."""
    rows = tuple(_describe_site(plan, index) for index in range(len(plan.sites)))
    notes = [f"{name} was tied and has its own memory now" for name in plan.untied]
    notes += [f"{name} gets a bias" for name in plan.rewrite.new_biases]
    lost = sorted(plan.sites[site].name for site in plan.rewrite.homeless)
    if lost:
        notes.append(f"the outputs do not depend on a part of the shift (as of attention keys) of {', '.join(lost)}")
    return rows, tuple(notes)


def _describe_site(plan: Plan, index: int) -> FoldRow:
    site, form = plan.sites[index], plan.forms[index]
    next_norms = [plan.sites[reader].name for reader in plan.solver.list_norm_readers(index)]
    into = (*(next_norms if form is Form.FORWARD else ()), *plan.rewrite.touched.get(index, ()))
    condition = plan.frames.conditions.get(index)
    outcome, rule = _name_outcome(plan, index)
    stays = "" if outcome == FOLDED else _explain(plan, index)
    largest = _largest(site.scale)
    if form is Form.KEEP:
        condition = None
    return FoldRow(", ".join(site.names), site.describe(), outcome, rule, into, stays, largest, condition)


def _name_outcome(plan: Plan, index: int) -> tuple[str, str]:
    """Outcome and rule of a norm."""
    site, form = plan.sites[index], plan.forms[index]
    if form is Form.KEEP:
        return (MULTIPLY_ADD if index in plan.frames.residues else KEPT), ""
    if form is Form.MULTIPLY:
        return MULTIPLY, "R8 local"
    if form is Form.BACKWARD:
        return FOLDED, "R3"
    into = plan.rewrite.touched.get(index, ())
    outcome = FOLDED if site.offline else AFFINE
    if plan.solver.feeds_sum(index):
        return outcome, "R8 cumulative"
    if any(name in plan.untied for name in into):
        return outcome, "R7"
    weights = [plan.solver.weight_dims[name] for name in into if name in plan.solver.weight_dims]
    return outcome, "R2" if weights and min(weights) > 2 else "R1"


def _explain(plan: Plan, index: int) -> str:
    """What stays of a norm and why."""
    site, reason = plan.sites[index], plan.reasons.get(index, "")
    if site.obstacle:
        return site.obstacle
    if not plan.solver.calls[index]:
        return NOT_REACHED
    if reason or site.offline:
        return reason
    return "not offline: its normalization of each row stays"


def _largest(scale: Tensor) -> float:
    return float(scale.abs().max()) if scale.numel() else 0.0
