"""Turns a plan into the rows and notes of a report."""

from __future__ import annotations

import torch
from torch import Tensor

from un.folding.graph import Graph, LinearUse, NormCall, Sum
from un.folding.plan import Plan
from un.folding.report import AFFINE, FOLDED, KEPT, MULTIPLY, MULTIPLY_ADD, FoldRow
from un.folding.solver import Form

NOT_REACHED = "not reached on the example inputs"


def tabulate(plan: Plan) -> tuple[tuple[FoldRow, ...], tuple[str, ...]]:
    """The rows of a plan's report, and its notes."""
    rows = tuple(_describe_site(plan, index) for index, site in enumerate(plan.sites) if not site.is_layer_scale)
    notes = [f"{name} was tied and has its own memory now" for name in plan.untied]
    notes += [f"{name} gets a bias" for name in plan.rewrite.new_biases]
    scales = {index: site.name for index, site in enumerate(plan.sites) if site.is_layer_scale}
    merged = [name for index, name in scales.items() if plan.forms[index] is Form.BACKWARD]
    if merged:
        notes.append(f"R10: {', '.join(merged)} merged into the layers before them")
    filled = sorted({module or "the model" for module, _ in plan.fills})
    if filled:
        notes.append(f"R6: padding in {', '.join(filled)} puts in what the norms before it made of the constant")
    if plan.obstacle:
        notes.append(f"followed and compared in the model's own type: {plan.obstacle}")
    return rows, (*notes, *plan.graph.notes)


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
    """Outcome and rule of a norm; R4 and R5 are cases of R1."""
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
    if weights and min(weights) > 2:
        return outcome, "R2"
    if is_final(plan.graph, index):
        return outcome, "R4"
    return outcome, "R5" if all(map(is_concatenation, plan.solver.calls[index])) else "R1"


def is_final(graph: Graph, site: int) -> bool:
    """Whether nothing comes after a norm but linear maps that read it, and sums of their outputs."""
    of_norm, of_heads = (torch.zeros(graph.size, dtype=torch.bool) for _ in range(2))
    for source in graph.sources[: graph.num_example_sources]:
        if isinstance(source, NormCall) and source.site == site:
            of_norm[source.outputs] = True
        elif bool(of_norm.any()):
            if not _is_head(source, of_norm, of_heads):
                return False
            of_heads[source.outputs] = True
    return True


def _is_head(source: LinearUse | NormCall | Sum, of_norm: Tensor, of_heads: Tensor) -> bool:
    if isinstance(source, Sum):
        return bool((of_heads[source.left] & of_heads[source.right]).all())
    return isinstance(source, LinearUse) and source.inputs is not None and bool(of_norm[source.inputs].all())


def is_concatenation(call: NormCall) -> bool:
    """Whether a norm reads several positions' channels as one row: every input code equally often, more than once."""
    codes, counts = torch.unique(call.inputs, return_counts=True)
    return bool(codes[0] != 0) and int(counts[0]) > 1 and bool((counts == counts[0]).all())


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
