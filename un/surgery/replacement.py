"""Replaces the norms of a built model in place.

A site is a module that normalises over channels, as `un.surgery.recognition` finds them: every module with a
`normalized_shape`, every norm of `un.norms`, e.g. from an earlier surgery, and every module that does what a LayerNorm
or RMSNorm does. BatchNorm and GroupNorm, which mean something else, are never sites.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from un.norms.core.base import Norm
from un.norms.core.rehearsal import check_recomputation
from un.surgery.attachments import avoid_fused_kernels, carry_hooks, list_computed_weights
from un.surgery.layout import ChannelFirst, find_inner
from un.surgery.measurement import NormTraits
from un.surgery.recognition import is_norm, recognize_norm
from un.surgery.sites import Globs, NormFactory, Site, assign_factories, find_mlp_sites, find_sites

NEUTRAL = {"weight": 1.0, "bias": 0.0}


@dataclass(frozen=True)
class SurgeryRow:
    """One line of the report: a site's dotted name, its norm before, and the new one or "kept"."""

    site: str
    old: str
    new: str


@dataclass(frozen=True)
class SurgeryReport:
    """What `replace_norms` did; `str(report)` is a printable table.

    Attributes:
        rows: the replaced sites, in module order, a shared norm's names together.
        kept: the norms that include or exclude left alone.
        added: the layers in MLPs, which stay, and the norms behind them.
        notes: what else changed in the model, and what looks like a norm and was left.
    """

    rows: tuple[SurgeryRow, ...]
    kept: tuple[SurgeryRow, ...] = ()
    notes: tuple[str, ...] = ()
    added: tuple[SurgeryRow, ...] = ()

    def __str__(self) -> str:
        table = [SurgeryRow("site", "old", "new"), *self.rows, *self.added, *self.kept]
        site_width, old_width = max(len(row.site) for row in table), max(len(row.old) for row in table)
        lines = [f"{row.site:{site_width}}  {row.old:{old_width}}  {row.new}" for row in table]
        added = f", {len(self.added)} put into MLPs" if self.added else ""
        return "\n".join([*lines, *self.notes, f"{len(self.rows)} norms replaced{added}, {len(self.kept)} kept"])


def replace_norms(
    model: nn.Module,
    norm_factory: NormFactory | Mapping[str, NormFactory],
    include: Globs = ("*",),
    exclude: Globs = (),
    carry_affine: bool = True,
) -> SurgeryReport:
    """Replaces the norms of a model in place; the model is untouched when an error is raised.

    A new norm has the eps of its factory and, from the norm it replaces, device, dtype, training mode and
    `requires_grad`. A parameter the old norm did not have (the bias of an RMSNorm) keeps its initial value and is
    trainable if the old norm was. A norm reachable under several names becomes one new norm under the same names.
    Norms over sequences (B, C, T) or maps (B, C, H, W) come back inside `ChannelFirst`; a norm with an activation of
    its own (timm's `LayerNormAct2d`) becomes a Sequential of the new norm and that activation. Hooks on a norm's calls
    move to the new one; a weight that torch computes (weight_norm, pruning, parametrizations) is carried as it is now.

    A class of norms with `in_mlps` also gets a norm behind the first layer of every MLP: the layer becomes a Sequential
    of itself, `linear`, and the norm, `norm`. Globs choose among these layers by their names as among norms.

    Args:
        model: any built model; it must hold norms, not be one.
        norm_factory: called as `norm_factory(num_features, device=, dtype=)`, with `affine=False` as well where the old
            norm has no weight. A mapping from glob to factory gives different sites different norms.
        include: sites to replace; every glob must match at least one norm.
        exclude: sites to keep; at least one of the globs must match, so that one list can serve several models.
        carry_affine: put the scale and shift of the old norm, as measured, into weight and bias of the new one.

    Raises:
        ValueError: model without norms or a norm itself; a glob without match; nothing left to replace; two mapping
            globs on one site; a shared norm selected under only some of its names; a norm that is not understood, such
            as one over several axes, an adaptive one or one whose layout cannot be found out; a factory's norm over
            another axis than the last, or whose state would move twice in a recomputed call; with carry_affine, a scale
            that is not 1 or a shift that is not 0 where the new norm has no weight or bias to take it.
    """
    if is_norm(model):
        described = _describe(model, recognize_norm(model))
        raise ValueError(f"the model itself is a norm, {described}: pass the module that holds it")
    sites, left = find_sites(model)
    if not sites:
        none = f"{type(model).__name__} has no norm to replace: no LayerNorm, no RMSNorm, none of un.norms"
        raise ValueError("; ".join([none, *left]))
    places, without_place = find_mlp_sites(model, norm_factory)
    sites += places
    left += without_place
    factories = assign_factories(sites, norm_factory, include, exclude)
    new_norms = {
        site.names: _build_norm(site, factories[site.names[0]], model, carry_affine)
        for site in sites
        if site.names[0] in factories
    }
    for norm in {type(norm): norm for norm in map(find_inner, new_norms.values()) if isinstance(norm, Norm)}.values():
        check_recomputation(norm)
    notes = [f"{name} and {site.names[0]} are one shared norm" for site in sites for name in site.names[1:]]
    notes += left
    for site in sites:
        if (new := new_norms.get(site.names)) is not None:
            if not site.is_layer:
                notes += _carry_attachments(site, new)
            for name in site.names:
                model.set_submodule(name, new)
    for name, change in avoid_fused_kernels(model, set(new_norms.values())):
        notes.append(f"{name}: {change}, because its fused kernel would bypass the new norms")
    return _build_report(sites, new_norms, notes)


def _build_report(sites: list[Site], new_norms: Mapping[tuple[str, ...], nn.Module], notes: list[str]) -> SurgeryReport:
    rows, kept, added = list[SurgeryRow](), list[SurgeryRow](), list[SurgeryRow]()
    for site in sites:
        old, new = _describe(site.norm, site.traits), new_norms.get(site.names)
        if site.is_layer:
            added += [SurgeryRow(name, old, f"+ {_describe(new.get_submodule('norm'))}") for name in site.names if new]
        elif new is None:
            kept += [SurgeryRow(name, old, "kept") for name in site.names]
        else:
            rows += [SurgeryRow(name, old, _describe(new)) for name in site.names]
    return SurgeryReport(tuple(rows), tuple(kept), tuple(notes), tuple(added))


def reset_norm_steps(model: nn.Module) -> int:
    """Calls `reset_steps()` on every norm that counts steps, as official UN advises before fine-tuning.

    Returns:
        The number of norms reset; 0 where no norm counts.
    """
    counters = [module for module in model.modules() if isinstance(module, Norm) and module.counts_steps]
    for norm in counters:
        norm.reset_steps()
    return len(counters)


def mark_final_norms(model: nn.Module, globs: Globs) -> None:
    """Marks the norms whose names match a glob as the last before the output layer, which hold the scale of its input.

    Globs without a match do no harm, so that one list can serve several models.
    """
    globs = [globs] if isinstance(globs, str) else globs
    for name, module in model.named_modules():
        if any(fnmatchcase(name, glob) for glob in globs):
            for norm in module.modules():  # a `ChannelFirst` holds it
                if isinstance(norm, Norm):
                    norm.is_final = True


def _build_norm(site: Site, norm_factory: NormFactory, model: nn.Module, carry_affine: bool) -> nn.Module:
    """Returns the module that takes the place of a norm, wrapped as its layout and activation need."""
    name, old, traits = site.names[0], site.norm, site.traits
    if traits.obstacle:
        raise ValueError(f"{name} {traits.obstacle}: exclude this {type(old).__name__}")
    options = _read_device_and_dtype(old, model.get_submodule(name.rpartition(".")[0]), model)
    if not traits.has_affine:
        options["affine"] = False
    new = norm_factory(traits.num_features, **options)
    measured = recognize_norm(new)
    if measured is not None and measured.axis != -1:
        raise ValueError(f"norm_factory must build norms over the last axis, but {type(new).__name__} is over another")
    if carry_affine:
        try:
            _carry_affine(traits, new)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; to drop it set carry_affine=False") from None
    flags = [parameter.requires_grad for parameter in old.parameters()]
    trainable = any(flags) or not flags
    same_names = dict(find_inner(old).named_parameters(recurse=False))
    for parameter_name, parameter in new.named_parameters():
        known = same_names.get(parameter_name)
        parameter.requires_grad_(trainable if known is None else known.requires_grad)
    if site.is_layer:
        return nn.Sequential(OrderedDict(linear=old, norm=new)).train(old.training)
    if traits.axis != -1:
        new = ChannelFirst(new, traits.axis)
    return (nn.Sequential(new, *traits.rest) if traits.rest else new).train(old.training)


def _read_device_and_dtype(*modules: nn.Module) -> dict[str, Any]:
    """Reads the first floating-point parameter, asking each module in turn; empty without any."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return {"device": parameter.device, "dtype": parameter.dtype}
    return {}


def _carry_affine(traits: NormTraits, new: nn.Module) -> None:
    """Copies scale and shift into weight and bias of a new norm over the last axis, and measures that it applies them.

    Raises:
        ValueError: what cannot be carried, as the end of a sentence.
    """
    wanted = {"weight": traits.scale, "bias": traits.shift}
    given = {name: value for name, value in wanted.items() if value is not None and not value.is_meta}
    for name, value in given.items():
        target = getattr(new, name, None)
        if target is not None:
            given[name] = target.data.copy_(value)
        elif bool((value != NEUTRAL[name]).any()):
            raise ValueError(f"{type(new).__name__} has no {name} to take that of what it replaces")
    measured = recognize_norm(new)
    if measured is None or measured.obstacle:
        return
    for name, applied in (("weight", measured.scale), ("bias", measured.shift)):
        if applied is not None and name in given:
            value = given[name].cpu().flatten()
            # Estimates of the variance, biased or not, make scales that differ by less than 1 / C.
            if not torch.allclose(applied.cpu().to(value), value, rtol=1 / len(value)):
                raise ValueError(f"{type(new).__name__} does not apply the {name} that it is given")


def _carry_attachments(site: Site, new: nn.Module) -> Iterator[str]:
    """Moves hooks to a new norm; yields notes on them and on computed weights."""
    for weight, kind in list_computed_weights(site.norm):
        yield f"{site.names[0]}: {kind} of {weight} is gone; the new norm's {weight} is a parameter"
    for change in carry_hooks(site.norm, new):
        yield f"{site.names[0]}: {change}"


def _describe(norm: nn.Module, traits: NormTraits | None = None) -> str:
    """Returns class, channels and eps of a norm, e.g. LayerNorm(192, eps=1e-06), and what is wrapped around it."""
    if isinstance(norm, ChannelFirst):
        return f"ChannelFirst({_describe(norm.norm, traits)})"
    if isinstance(norm, nn.Linear):
        return f"Linear({norm.in_features}, {norm.out_features})"
    if isinstance(norm, nn.Sequential):
        return " + ".join([_describe(norm[0]), *(type(module).__name__ for module in norm[1:])])
    known = traits.num_features if traits is not None else getattr(norm, "num_features", None)
    size = getattr(norm, "normalized_shape", None) or known or "?"
    details = ["x".join(map(str, size)) if isinstance(size, tuple | list) else str(size)]
    eps = getattr(norm, "eps", None)
    if isinstance(eps, float | int):
        details.append(f"eps={eps:g}")
    if not (traits.has_affine if traits is not None else getattr(norm, "weight", None) is not None):
        details.append("affine=False")
    return f"{type(norm).__name__}({', '.join(details)})"
