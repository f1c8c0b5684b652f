"""Folds the norms of a model, in this order.

1. copy: everything is tried on copies; float64 where the model runs in it (`copy_model`)
2. find: norms and LayerScales, and the map of each (`sites`)
3. trace: what meets which channels of which norm (`tracer`; rules in `arithmetic`, `moves`, `padding`; a `graph`)
4. solve: the best form of each norm that contradicts nothing (`solver`, `frames`)
5. rewrite: the weights and biases that take the maps (`rewrite`)
6. apply: new weights into a copy, and norms out of it (`apply`)
7. verify: outputs before and after agree on the example (`verify`); other calls are refused (`inputs`)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from un.folding.apply import Plan, apply_plan, untie_projections
from un.folding.frames import Form, Frames
from un.folding.inputs import InputGuard, Inputs
from un.folding.report import FoldReport, list_notes, list_rows
from un.folding.rewrite import Rewrite, rewrite_weights
from un.folding.sites import find_sites
from un.folding.solver import MAX_CONDITION, Solver
from un.folding.tracer import trace
from un.folding.verify import list_tensors, measure_difference, measure_inside
from un.surgery.probing import copy_computed

OPTIONS = {"on_unfoldable": ("keep", "raise"), "tied": ("untie", "keep")}

TOLERANCE = 1e-9  # relative, in float64: what rounding and conditions up to MAX_CONDITION can add up to
TOLERANCE_WITH_ROUNDING = 1e-4  # where the model itself computes in float32, as fairseq's softmax always does
# Relative, in the model's own type: what may be lost to scales carried through a residual stream (ours).
PRECISION = {torch.float32: 1e-5, torch.float64: 1e-12}


def fold_norms(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...] | Mapping[str, Any],
    on_unfoldable: str = "keep",
    *,
    tied: str = "untie",
) -> tuple[nn.Module, FoldReport]:
    """Folds norms into the linear layers and convolutions around them.

    The layers that read a norm are found by following the data flow on the example inputs; whatever masks, sizes and
    choices could do on other inputs counts as if it happened. The folded model computes what the model does for every
    input, or refuses the input. What does not fold exactly is left as a `ScaleShift`; LayerNorm and others that are not
    offline lose their weight and bias only. LayerScales between a linear layer and the residual stream go into that
    layer.

    Args:
        model: any model; it is not changed. It is folded as in evaluation mode, whatever mode it is in.
        example_inputs: a tensor, a tuple of positional inputs or a mapping of keyword ones, on the model's device; they
            are not changed. Outputs are compared on them.
        on_unfoldable: "keep" leaves what does not fold and reports it, "raise" refuses.
        tied: "untie" gives an output projection that shares its weight with an embedding a copy of its own, "keep"
            leaves the norm before it as a `ScaleShift`.

    Returns:
        The folded copy, in evaluation mode, and the report.

    Raises:
        ValueError: unknown options; a model without norms, itself a norm, or one that cannot be copied; norms left with
            `on_unfoldable="raise"`.
        ArithmeticError: the folded model's outputs differ by more than rounding, or nothing that the example shows
            depends on the norms.
    """
    for (name, allowed), value in zip(OPTIONS.items(), (on_unfoldable, tied), strict=True):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    inputs, own_type = Inputs.of(example_inputs), _find_type(model)
    folded, report = _fold(model, inputs, tied, MAX_CONDITION)
    if report.condition > 1 and not report.difference_in_type <= PRECISION.get(own_type, 0.0):
        folded, report = _fold(model, inputs, tied, max_condition=1)
    if not report.difference_in_type <= torch.finfo(own_type).eps ** 0.5:  # half of the digits
        raise ArithmeticError(
            f"in {own_type} folding changed the outputs by {report.difference_in_type:.1e} of the largest: scales are "
            "too far apart for this type"
        )
    if on_unfoldable == "raise" and report.remaining:
        listed = "; ".join(f"{row.site} ({row.outcome}: {row.stays})" for row in report.remaining)
        raise ValueError(f"{len(report.remaining)} of {len(report.rows)} norms do not vanish: {listed}")
    InputGuard.of(model, inputs).install(folded)
    return folded, report


def _fold(model: nn.Module, inputs: Inputs, tied: str, max_condition: float) -> tuple[nn.Module, FoldReport]:
    """Folds a copy; the comparison in the model's own type is left to the caller to judge."""
    plan = _make_plan(model, inputs, tied, max_condition)
    folded = copy_model(model)
    apply_plan(plan, folded)
    difference = _verify(plan, model, inputs)
    with torch.no_grad():
        outputs = [list_tensors(inputs.run(copy_model(candidate))) for candidate in (model, folded)]
    return folded, FoldReport(list_rows(plan), list_notes(plan), difference, measure_difference(*outputs))


def _make_plan(model: nn.Module, inputs: Inputs, tied: str, max_condition: float) -> Plan:
    """Plans what becomes of each norm, in the best forms that contradict nothing."""
    dtype, obstacle = _choose_type(model, inputs)
    with torch.inference_mode():
        copied = copy_model(model, dtype)
        untied = untie_projections(copied) if tied == "untie" else ()
        sites = find_sites(copied)
        if all(site.is_layer_scale for site in sites):
            raise ValueError(f"{type(model).__name__} has no norm to fold: no LayerNorm, no RMSNorm, none of un.norms")
        graph = trace(copied, sites, inputs.cast(dtype))
        solver = Solver(graph, sites, max_condition)
        forms, reasons, frames, rewrite = _solve(solver)
    changed = tuple(name for name in untied if name in rewrite.values)
    return Plan(solver, forms, reasons, frames, rewrite, untied=changed, obstacle=obstacle)


def _solve(solver: Solver) -> tuple[list[Form], dict[int, str], Frames, Rewrite]:
    """Returns the best forms without contradiction, why better ones have one, their frames and the new weights."""
    ranks = [0] * len(solver.sites)
    reasons: dict[int, str] = {}
    while True:
        forms = [of_site[rank] for of_site, rank in zip(solver.forms, ranks, strict=True)]
        frames = solver.solve(forms)
        rewrite = Rewrite() if frames.blamed else rewrite_weights(solver.graph, frames)
        if not frames.blamed:
            return forms, reasons, frames, rewrite
        reasons.update(frames.blamed)
        for site, reason in frames.blamed.items():
            ranks[site] += 1
            if ranks[site] == len(solver.forms[site]):
                raise ArithmeticError(f"{solver.sites[site].name} cannot be left in any form: {reason}")


def _verify(plan: Plan, model: nn.Module, inputs: Inputs) -> float:
    """Returns the largest relative difference between the model and the folded one, in the type of the plan.

    Raises:
        ArithmeticError: it is more than rounding, or nothing could be compared.
    """
    tolerance = TOLERANCE if plan.dtype is not None else torch.finfo(_find_type(model)).eps ** 0.5
    if plan.graph.rounds:
        tolerance = max(tolerance, TOLERANCE_WITH_ROUNDING)
    with torch.no_grad():
        original, folded = (copy_model(model, plan.dtype) for _ in range(2))
        apply_plan(plan, folded)
        moved, changed = plan.list_moved(), plan.list_changed_modules()
        difference = measure_inside(original, folded, inputs.cast(plan.dtype), moved, changed)
    if not difference <= tolerance:
        raise ArithmeticError(
            f"folding changed the outputs by {difference:.1e} of the largest, more than rounding explains: not folded"
        )
    return difference


def copy_model(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Returns a copy in evaluation mode, in float64 if `dtype` says so and in the model's own types if it is None.

    Raises:
        ValueError: it cannot be copied.
    """
    try:
        copied = copy.deepcopy(model, {**copy_computed(model)}).eval()
    except Exception as error:  # any object that a model holds may refuse, each in its own way
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{type(model).__name__} cannot be copied, so it cannot be folded: {reason}") from error
    return copied if dtype is None else copied.double()


def _choose_type(model: nn.Module, inputs: Inputs) -> tuple[torch.dtype | None, str]:
    """Returns float64, or None where the model runs in its own type alone, and why.

    Raises:
        Exception: what the model raises on the example inputs in its own type.
    """
    with torch.no_grad():
        try:
            inputs.cast(torch.float64).run(copy_model(model, torch.float64))
        except Exception as error:  # a model may fail in any way where it fixes a type
            inputs.run(copy_model(model))
            return None, f"the model does not run in float64 ({str(error).partition(chr(10))[0]})"
    return torch.float64, ""


def _find_type(model: nn.Module) -> torch.dtype:
    """Returns the least precise floating-point type of the model's parameters."""
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return max(types, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
