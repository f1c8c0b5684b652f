"""Folds the norms of a model, verifies the result and reports."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from un.folding.graph import Catalog
from un.folding.plan import Plan, apply_plan, untie_projections
from un.folding.report import FoldReport
from un.folding.rewrite import HOMELESS, Rewrite, rewrite_weights
from un.folding.sites import find_sites
from un.folding.solver import Form, Frames, Solver
from un.folding.tabulate import tabulate
from un.folding.tracer import trace
from un.folding.verify import list_tensors, measure_difference, run_model

TOLERANCE = 1e-9  # relative, in float64: what rounding and conditions up to MAX_CONDITION can add up to
TOLERANCE_WITH_ROUNDING = 1e-4  # where the model itself computes in float32, as fairseq's softmax always does


def fold_norms(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | Mapping[str, Any],
    on_unfoldable: str = "keep",
    *,
    tied: str = "untie",
) -> tuple[nn.Module, FoldReport]:
    """Folds norms into the linear layers and convolutions around them.

    Consumers are found by following the data flow on the example inputs, so the fold holds for every input that takes
    the same path through the model's code. Whatever does not fold exactly is left as a `ScaleShift`; LayerNorm and
    others that are not offline lose their weight and bias only. LayerScales between a linear layer and the residual
    stream go into that layer.

    Args:
        model: any model; it is not changed. It is folded as in evaluation mode, whatever mode it is in.
        example_inputs: a tuple of positional inputs or a mapping of keyword ones, on the model's device. Outputs are
            compared on them.
        on_unfoldable: "keep" leaves what does not fold and reports it, "raise" refuses.
        tied: "untie" gives an output projection that shares its weight with an embedding a copy of its own, "keep"
            leaves the norm before it as a `ScaleShift`.

    Returns:
        The folded copy, in evaluation mode, and the report.

    Raises:
        ValueError: unknown options; a model without norms or itself a norm; norms left with `on_unfoldable="raise"`.
        ArithmeticError: the folded model's outputs differ by more than rounding.
    """
    for name, value, allowed in (
        ("on_unfoldable", on_unfoldable, ("keep", "raise")),
        ("tied", tied, ("untie", "keep")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    if isinstance(example_inputs, Tensor) or not isinstance(example_inputs, tuple | list | Mapping):
        raise ValueError(
            "example_inputs must be a tuple of inputs or a mapping from names to inputs, got "
            f"{type(example_inputs).__name__}"
        )
    plan, difference = _plan_verified(model, example_inputs, tied)
    folded = copy.deepcopy(model).eval()
    apply_plan(plan, folded)
    difference_in_type = _compare_in_type(model, folded, example_inputs)
    report = FoldReport(*tabulate(plan), difference, difference_in_type)
    if on_unfoldable == "raise" and report.remaining:
        listed = "; ".join(f"{row.site} ({row.outcome}: {row.stays})" for row in report.remaining)
        raise ValueError(f"{len(report.remaining)} of {len(report.rows)} norms do not vanish: {listed}")
    return folded, report


def _plan_verified(model: nn.Module, example_inputs: Any, tied: str) -> tuple[Plan, float]:
    """A plan whose folded model agrees in float64, and the difference that is left."""
    with torch.inference_mode():
        copied = copy.deepcopy(model).eval().double()
        untied = untie_projections(copied) if tied == "untie" else ()
        sites = find_sites(copied)
        if all(site.is_layer_scale for site in sites):
            raise ValueError(f"{type(model).__name__} holds no norm: no LayerNorm, no RMSNorm, none of un.norms")
        graph, outputs = trace(copied, sites, lambda traced: run_model(traced, example_inputs, torch.float64))
        expected = list_tensors(outputs)
        catalog = Catalog(copied)
        tolerance = TOLERANCE_WITH_ROUNDING if graph.rounds else TOLERANCE
        solver = Solver(graph, sites)
        ranks = dict.fromkeys(range(len(sites)), 0)
        reasons: dict[int, str] = {}
        while True:
            forms, frames, rewrite = _solve(solver, catalog, ranks, reasons)
            changed = tuple(name for name in untied if name in rewrite.values)
            plan = Plan(sites, solver, forms, dict(reasons), frames, rewrite, changed)
            difference = _compare(plan, model, example_inputs, expected)
            if difference <= tolerance:
                return plan, difference
            if not rewrite.homeless:
                raise ArithmeticError(
                    f"folding changed the outputs by {difference:.1e} of the largest, more than rounding: not folded"
                )
            _lower(solver, dict.fromkeys(rewrite.homeless, HOMELESS), ranks, reasons)


def _solve(
    solver: Solver, catalog: Catalog, ranks: dict[int, int], reasons: dict[int, str]
) -> tuple[dict[int, Form], Frames, Rewrite]:
    """The best forms that contradict nothing; `ranks` and `reasons` are moved on."""
    while True:
        forms = {site: solver.list_forms(site)[rank] for site, rank in ranks.items()}
        frames = solver.solve(forms)
        if not frames.blamed:
            rewrite = rewrite_weights(solver.graph, catalog, frames)
            if not frames.blamed:
                return forms, frames, rewrite
        _lower(solver, frames.blamed, ranks, reasons)


def _lower(solver: Solver, blamed: Mapping[int, str], ranks: dict[int, int], reasons: dict[int, str]) -> None:
    """Moves every blamed norm on to its next form."""
    for site, reason in blamed.items():
        reasons[site] = reason
        ranks[site] += 1
        if ranks[site] == len(solver.list_forms(site)):
            raise ArithmeticError(f"{solver.sites[site].name} can be left in no form: {reason}")


def _compare(plan: Plan, model: nn.Module, example_inputs: Any, expected: list[Tensor]) -> float:
    with torch.no_grad():
        folded = copy.deepcopy(model).eval().double()
        apply_plan(plan, folded)
        return measure_difference(expected, list_tensors(run_model(folded, example_inputs, torch.float64)))


def _compare_in_type(model: nn.Module, folded: nn.Module, example_inputs: Any) -> float:
    """The difference in the model's own type.

    Raises:
        ArithmeticError: it exceeds half of the type's digits.
    """
    with torch.no_grad():
        expected = list_tensors(run_model(copy.deepcopy(model).eval(), example_inputs))
        difference = measure_difference(expected, list_tensors(run_model(copy.deepcopy(folded), example_inputs)))
    types = [tensor.dtype for tensor in expected if tensor.is_floating_point()]
    limit = max((torch.finfo(dtype).eps ** 0.5 for dtype in types), default=0.0)
    if not difference <= limit:
        raise ArithmeticError(
            f"in {', '.join(map(str, sorted(set(types), key=str)))} folding changed the outputs by {difference:.1e} of "
            "the largest: scales are too far apart for this type"
        )
    return difference
