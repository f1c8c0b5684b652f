"""Takes the norms out of a trained model, one after the other in the order of its forward.

A norm's map is fitted on what reaches it now, with maps in place of the norms before it, against what the original
model gives there. To have all calibration batches at a norm at the same time, forwards of both models stop at every
norm that is not fitted (`paused`); what is held is bounded, and batches beyond the bound start anew for every norm.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from un.folding.inputs import Inputs
from un.norms.core.base import Norm
from un.retrofit.memory import return_freed_memory
from un.retrofit.methods import METHODS, Fit
from un.retrofit.paused import PausedForward, Visit, copy_structure
from un.retrofit.report import OutputDifference, RetrofitReport, RetrofitRow
from un.surgery import NormFactory, replace_norms
from un.surgery.attachments import avoid_fused_kernels, carry_hooks
from un.surgery.probing import copy_computed
from un.surgery.sites import Globs, Site, find_sites

HELD_BYTES = 2**28  # of inputs of the first norm in all forwards that are held; each holds a few tensors of this size

Run = Callable[[nn.Module, Any], Any]


def call_model(model: nn.Module, batch: Any) -> Any:
    """Calls a model on a tensor, a tuple of positional inputs or a mapping of keyword ones; it must not change them."""
    inputs = Inputs.of(batch)
    return model(*inputs.args, **inputs.kwargs)


def retrofit(
    model: nn.Module,
    batches: Iterable[Any],
    norm_factory: NormFactory | None = None,
    method: str = "least_squares",
    run: Run | None = None,
    *,
    include: Globs = ("*",),
    exclude: Globs = (),
) -> tuple[nn.Module, RetrofitReport]:
    """Returns a copy of a trained model with fixed maps in place of its norms, which `fold_norms` can take out.

    Rows that are padding stay out where the norms are told, as by `share_pad_mask` in the model or in `run`. What is
    held in memory does not grow with the calibration data; where it does not hold them all, those beyond are run again
    for every norm.

    Args:
        model: any trained model with norms over channels; it is not changed.
        batches: calibration data, whatever `run` takes; must be iterable more than once if they are many.
        norm_factory: called as `norm_factory(num_features, device=, dtype=)`; builds what takes the place of a norm:
            offline norms, whose running statistics become those of the calibration data, and whose weight and bias make
            the fitted map of them. None puts plain maps, `ChannelMap`.
        method: how the maps are found: "least_squares" (of the original norm's outputs, ours), "scalar" or
            "fake_layernorm" (one fixed deviation for all rows, see `Fit`), "statistics" (least squares, and a norm of
            `norm_factory` to train on with).
        run: calls the model on a batch; by default with a tensor, a tuple of positional inputs or a mapping of keyword
            ones.
        include: globs of the norms to take out, as of `replace_norms`.
        exclude: globs of norms that stay.

    Returns:
        The copy, in the mode of the model, and the report.

    Raises:
        ValueError: an unknown method; "statistics" without a factory; a factory of norms that are no fixed map; a
            model without norms, or with one that is called twice in a forward; no calibration data, or data which never
            reach a norm, give it fewer rows than it has channels, or values that are not finite.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "statistics" and norm_factory is None:
        raise ValueError("method='statistics' needs a norm_factory that builds norms with running statistics, as UN")
    calibration = _Calibration(model, batches, norm_factory, method, run or call_model, include, exclude)
    with torch.no_grad():
        return calibration.finish(model.training)


class _Gauge(Norm):
    """Stands in the place of a norm: has a forward wait until the map is fitted, and then applies it.

    Args:
        num_features: C.
        place: device and type of the norm's parameters.
    """

    def __init__(self, num_features: int, affine: bool = True, **place: Any) -> None:
        super().__init__(num_features, eps=0.0, affine=False)
        self.place = place
        self.site = ""
        self.fitted: dict[str, Norm] = {}
        self.running: PausedForward | None = None

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        if self.running is None:  # while surgery measures what it is
            return x
        x, pad_mask = self.check_input(x, pad_mask)
        self.running.visit(self.site, x, pad_mask, waits=self.site not in self.fitted)
        y: Tensor = self.fitted[self.site](x)
        return y


@dataclass
class _Course:
    """The two forwards of a batch, and the norm at which they stand; None before and after."""

    number: int
    original: PausedForward
    changed: PausedForward
    found: tuple[Visit, Visit] | None = None

    def advance(self) -> None:
        """Goes on to the next norm, or to the end."""
        first, second = self.original.advance(), self.changed.advance()
        self.found = None if first is None or second is None else (first, second)
        names = [visit.site if visit is not None else "nothing" for visit in (first, second)]
        if names[0] != names[1]:
            raise ValueError(f"with other norms the model calls {names[1]} next and not {names[0]}: exclude it")

    def stop(self) -> None:
        self.original.stop()
        self.changed.stop()


class _Calibration:
    """One retrofit; arguments as of `retrofit`."""

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        norm_factory: NormFactory | None,
        method: str,
        run: Run,
        include: Globs,
        exclude: Globs,
    ) -> None:
        self.batches, self.norm_factory, self.method, self.run = batches, norm_factory, method, run
        self.changed = copy.deepcopy(model, {**copy_computed(model)}).eval()
        surgery = replace_norms(self.changed, _Gauge, include, exclude, carry_affine=False)
        chosen = {row.site for row in surgery.rows}
        self.original = copy_structure(model).eval()
        sites, _ = find_sites(self.original)
        self.sites: dict[str, Site] = {site.names[0]: site for site in sites if site.names[0] in chosen}
        avoid_fused_kernels(self.original, {site.norm for site in self.sites.values()})
        self.notes = [note for note in surgery.notes if "carried" not in note]
        self.fitted: dict[str, Norm] = {}
        self.rows: list[RetrofitRow] = []
        for site in self.sites:
            gauge = _find_gauge(self.changed, site)
            gauge.site, gauge.fitted = site, self.fitted
        self.difference = OutputDifference()

    def finish(self, training: bool) -> tuple[nn.Module, RetrofitReport]:
        """Fits all norms and returns the model and the report."""
        held: list[_Course] = []
        try:
            has_more = self._start_held(held)
            while (standing := held[0].found) is not None:
                self._fit(standing[0].site, held, has_more)
                for course in held:
                    course.advance()
                    return_freed_memory()
            for course in held:
                self.difference.add(course.original.outputs, course.changed.outputs)
        finally:
            for course in held:
                course.stop()
        missed = [site for site in self.sites if site not in self.fitted]
        if missed:
            raise ValueError(f"the calibration data never reach {', '.join(missed)}: exclude it, or give data that do")
        self._install()
        report = RetrofitReport(tuple(self.rows), self.method, self.difference.relative, tuple(self.notes))
        return self.changed.train(training), report

    def _start(self, number: int, batch: Any) -> _Course:
        """Begins the forwards of a batch, each in a structure of its own, as modules may keep state in themselves."""
        original, changed = copy_structure(self.original), copy_structure(self.changed, self.fitted)

        def run_original(forward: PausedForward) -> Any:
            for name in self.sites:

                def visit(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                    x = args[0] if args else next(iter(kwargs.values()))
                    forward.visit(name, x, waits=name not in self.fitted)

                original.get_submodule(name).register_forward_pre_hook(visit, with_kwargs=True)
            return self.run(original, batch)

        def run_changed(forward: PausedForward) -> Any:
            for module in changed.modules():
                if isinstance(module, _Gauge):
                    module.running = forward
            return self.run(changed, batch)

        return _Course(number, PausedForward(run_original), PausedForward(run_changed))

    def _start_held(self, held: list[_Course]) -> bool:
        """Brings as many batches as may be held to their first norm; tells whether there are more.

        Raises:
            ValueError: there is no batch, or there are more and they cannot be had again.
        """
        size = 0
        batches = iter(self.batches)
        for number, batch in enumerate(batches, 1):
            held.append(self._start(number, batch))
            held[-1].advance()
            return_freed_memory()
            size += 0 if held[-1].found is None else held[-1].found[0].value.nbytes
            if size >= HELD_BYTES:
                break
        if not held:
            raise ValueError("calibration needs at least one batch")
        has_more = next(batches, None) is not None
        if has_more and batches is self.batches:
            raise ValueError(
                f"calibration holds no more than {len(held)} of these batches, and the others come from an iterator, "
                "which can be run through only once: give a list or a loader"
            )
        return has_more

    def _fit(self, name: str, held: list[_Course], has_more: bool) -> None:
        """Fits a norm on the held forwards, which stand there, and on those of the other batches."""
        site, gauge = self.sites[name], _find_gauge(self.changed, name)
        fit = Fit(self.method, site.norm, site.traits)
        for course in held:
            self._add(fit, name, course)
        if has_more:
            for number, batch in enumerate(islice(self.batches, len(held), None), len(held) + 1):
                course = self._start(number, batch)
                course.advance()
                self._add(fit, name, course)
                course.stop()
        moments, num_channels = fit.moments, gauge.num_features
        if moments.num_rows < num_channels:
            raise ValueError(
                f"{name} is given {moments.num_rows} rows by the calibration data, fewer than its {num_channels} "
                "channels: give more batches"
            )
        new = fit.build(self.norm_factory, num_channels, **gauge.place)
        self.fitted[name] = new
        r2, (outlier, largest) = moments.measure_fit(*fit.solve()), moments.find_outlier()
        kinds = type(site.norm).__name__, type(new).__name__
        outliers = outlier, *moments.compare_outliers(*fit.solve())
        fits = float(r2.min()), float(r2.median())
        self.rows.append(RetrofitRow(", ".join(site.names), *kinds, *fits, *outliers, largest, moments.num_rows))

    def _add(self, fit: Fit, name: str, course: _Course) -> None:
        """Adds the rows with which a batch stands at a norm."""
        if course.found is None or course.found[0].site != name:
            where = "ends" if course.found is None else f"calls {course.found[0].site}"
            raise ValueError(f"batch {course.number} {where} where others call {name}: exclude what not all reach")
        (_, original, _), (_, x, pad_mask) = course.found
        y = _normalize(self.sites[name], original)  # here, as a forward that stood behind the norm would hold more
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1])
        if pad_mask is not None:
            kept = ~pad_mask.reshape(-1)
            x, y = x[kept], y[kept]
        fit.add(x, y)
        if not fit.moments.is_finite:
            raise ValueError(f"{name} is given values that are not finite by calibration batch {course.number}")

    def _install(self) -> None:
        """Puts the new norms in the place of the gauges, under all their names."""
        for name, module in list(self.changed.named_modules(remove_duplicate=False)):
            if isinstance(module, _Gauge):
                new = self.fitted[module.site]
                carry_hooks(module, new)
                self.changed.set_submodule(name, new)
        for site in self.sites.values():
            flags = [parameter.requires_grad for parameter in site.norm.parameters()]
            self.fitted[site.names[0]].requires_grad_(any(flags) or not flags)


def _find_gauge(model: nn.Module, site: str) -> _Gauge:
    return next(module for module in model.get_submodule(site).modules() if isinstance(module, _Gauge))


def _normalize(site: Site, x: Tensor) -> Tensor:
    """Returns what an original norm makes of x, channels last, before modules of its own act on the result."""
    norm = site.norm
    if site.traits.rest:
        names = [name for name, module in norm.named_children() if module in site.traits.rest]
        norm = copy.copy(norm)
        norm._modules = {**norm._modules, **dict.fromkeys(names, nn.Identity())}
    y: Tensor = norm(x)
    return y.movedim(site.traits.axis, -1)
