"""Finds the norms of a built model and replaces them in place.

A site is a module that normalises over channels, as `un.surgery.recognition` finds them: every module with a
`normalized_shape`, every norm of `un.norms`, e.g. from an earlier surgery, and every module that does what a LayerNorm
or RMSNorm does. BatchNorm and GroupNorm, which mean something else, are never sites.

Globs are those of `fnmatch` on dotted module names, where `*` also crosses dots: "*.norm1", "blocks.*", "*blocks.1?.*".
Naming sites by glob, and the error when two rules claim one site, follow pytorch/torchtitan's overrides.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from un.norms.core.base import Norm
from un.surgery.attachments import carry_hooks, list_computed_weights
from un.surgery.carrying import carry_affine as carry_scale_and_shift
from un.surgery.fused_kernels import avoid_fused_kernels
from un.surgery.layout import ChannelFirst, find_inner
from un.surgery.recognition import NormTraits, is_norm, recognize_norm, walk_norms

NormFactory = Callable[..., nn.Module]

SUGGESTIONS = 3  # site names offered when a glob matches nothing


@dataclass(frozen=True)
class SurgeryRow:
    """One line of the report: a site's dotted name, its norm before and after (the same where it is kept)."""

    site: str
    old: str
    new: str


@dataclass(frozen=True)
class SurgeryReport:
    """What `replace_norms` did; `str(report)` is a printable table.

    Attributes:
        rows: the replaced sites, in module order.
        kept: the norms that include or exclude left alone.
        notes: what else changed in the model, and what looks like a norm and was left.
    """

    rows: tuple[SurgeryRow, ...]
    kept: tuple[SurgeryRow, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        kept = [SurgeryRow(row.site, row.old, "kept") for row in self.kept]
        table = [SurgeryRow("site", "old", "new"), *self.rows, *kept]
        site_width, old_width = max(len(row.site) for row in table), max(len(row.old) for row in table)
        lines = [f"{row.site:{site_width}}  {row.old:{old_width}}  {row.new}" for row in table]
        return "\n".join([*lines, *self.notes, f"{len(self.rows)} norms replaced, {len(self.kept)} kept"])


@dataclass(frozen=True)
class Site:
    """A norm under one of its names, where it is held, and what was recognised in it."""

    name: str
    parent: nn.Module
    attribute: str
    norm: nn.Module
    traits: NormTraits


def replace_norms(
    model: nn.Module,
    norm_factory: NormFactory | Mapping[str, NormFactory],
    include: str | Sequence[str] = ("*",),
    exclude: str | Sequence[str] = (),
    carry_affine: bool = True,
) -> SurgeryReport:
    """Replaces the norms of a model in place; the model is untouched when an error is raised.

    A new norm has the eps of its factory and, from the norm it replaces, device, dtype, training mode and
    `requires_grad`. A parameter the old norm did not have (the bias of an RMSNorm) keeps its initial value and is
    trainable if the old norm was. A norm reachable under several names becomes one new norm under the same names.
    Norms over sequences (B, C, T) or maps (B, C, H, W) come back inside `ChannelFirst`; a norm with an activation of
    its own (timm's `LayerNormAct2d`) becomes a Sequential of the new norm and that activation. Hooks on a norm's calls
    move to the new one; a weight that torch computes (weight_norm, pruning, parametrizations) is carried as it is now.

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
            another axis than the last; with carry_affine, a scale that is not 1 or a shift that is not 0 where the new
            norm has no weight or bias to take it.
    """
    if is_norm(model):
        raise ValueError(
            f"the model itself is a norm, {_describe(model, recognize_norm(model))}: pass the module that holds it"
        )
    sites, left = _find_sites(model)
    if not sites:
        none = f"{type(model).__name__} has no norm to replace: no LayerNorm, no RMSNorm, none of un.norms"
        raise ValueError("; ".join([none, *left]))
    factories = _assign_factories([site.name for site in sites], norm_factory, include, exclude)
    _check_shared(sites, factories)
    chosen = [site for site in sites if site.name in factories]
    new_norms: dict[int, nn.Module] = {}
    for site in chosen:
        if id(site.norm) not in new_norms:
            new_norms[id(site.norm)] = _build_norm(site, factories[site.name], model, carry_affine)
    rows = []
    for site in sites:
        old = _describe(site.norm, site.traits)
        new = new_norms.get(id(site.norm))
        rows.append(SurgeryRow(site.name, old, old if new is None else _describe(new)))
    notes = [*_note_shared(sites), *left]
    first = {id(site.norm): site for site in reversed(chosen)}
    for site in chosen:
        new = new_norms[id(site.norm)]
        if first[id(site.norm)] is site:
            notes += _carry_attachments(site, new)
        setattr(site.parent, site.attribute, new)
    notes += _disable_fast_paths(model, set(new_norms.values()))
    replaced = tuple(row for row in rows if row.site in factories)
    return SurgeryReport(replaced, tuple(row for row in rows if row.site not in factories), tuple(notes))


def reset_norm_steps(model: nn.Module) -> int:
    """Calls `reset_steps()` on every norm that counts steps, as official UN advises before fine-tuning.

    Returns:
        The number of norms reset; 0 where no norm counts.
    """
    counters = [module for module in model.modules() if isinstance(module, Norm) and module.counts_steps]
    for norm in counters:
        norm.reset_steps()
    return len(counters)


def _find_sites(model: nn.Module) -> tuple[list[Site], list[str]]:
    """Every name of every norm, and notes on what looks like a norm and is none that could be replaced."""
    sites, left = list[Site](), list[str]()
    for name, norm, traits in walk_norms(model, recognize_norm):
        if not traits.is_site:
            left.append(f"{name} was left: {type(norm).__name__} looks like a norm, but {traits.obstacle}")
            continue
        parent, _, attribute = name.rpartition(".")
        sites.append(Site(name, model.get_submodule(parent), attribute, norm, traits))
    return sites, left


def _assign_factories(
    names: list[str],
    norm_factory: NormFactory | Mapping[str, NormFactory],
    include: str | Sequence[str],
    exclude: str | Sequence[str],
) -> dict[str, NormFactory]:
    """Maps the names of the sites to replace to their factory; see `replace_norms` for the errors."""
    included, excluded = _as_globs("include", include), _as_globs("exclude", exclude)
    for glob in included:
        _check_match("include", [glob], names)
    if excluded:
        _check_match("exclude", excluded, names)
    chosen = [name for name in names if _matches(name, included) and not _matches(name, excluded)]
    if not chosen:
        raise ValueError(f"include {included} and exclude {excluded} leave no norm to replace")
    if not isinstance(norm_factory, Mapping):
        return dict.fromkeys(chosen, norm_factory)
    for glob in norm_factory:
        _check_match("norm glob", [glob], chosen)
    factories = {}
    for name in chosen:
        claims = [glob for glob in norm_factory if fnmatchcase(name, glob)]
        if len(claims) > 1:
            raise ValueError(f"norm globs {claims} all claim {name}: make them disjoint")
        if claims:
            factories[name] = norm_factory[claims[0]]
    return factories


def _as_globs(argument: str, globs: str | Sequence[str]) -> list[str]:
    globs = [globs] if isinstance(globs, str) else globs
    if not isinstance(globs, Sequence) or not all(isinstance(glob, str) for glob in globs):
        raise ValueError(f"{argument} must be a glob or a list of globs on module names, got {globs!r}")
    return list(globs)


def _matches(name: str, globs: list[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _check_match(argument: str, globs: list[str], names: list[str]) -> None:
    if not any(_matches(name, globs) for name in names):
        wanted = ", ".join(map(repr, globs))
        nearest = ", ".join(difflib.get_close_matches(globs[0], names, SUGGESTIONS, cutoff=0.0))
        raise ValueError(f"{argument} {wanted} matches no norm; the nearest are {nearest}")


def _check_shared(sites: list[Site], factories: dict[str, NormFactory]) -> None:
    """Raises where the names of one norm object would get different norms."""
    first: dict[int, str] = {}
    for site in sites:
        other = first.setdefault(id(site.norm), site.name)
        if factories.get(site.name) is not factories.get(other):
            raise ValueError(f"{other} and {site.name} are one shared norm: include, exclude or map both or neither")


def _build_norm(site: Site, norm_factory: NormFactory, model: nn.Module, carry_affine: bool) -> nn.Module:
    """The module which takes the place of a norm, wrapped as its layout and activation need."""
    old, traits = site.norm, site.traits
    if traits.obstacle:
        raise ValueError(f"{site.name} {traits.obstacle}: exclude this {type(old).__name__}")
    options = _read_device_and_dtype(old, site.parent, model)
    if not traits.has_affine:
        options["affine"] = False
    new = norm_factory(traits.num_features, **options)
    built = None if isinstance(new, Norm) else recognize_norm(new)
    if built is not None and built.axis != -1:
        raise ValueError(f"norm_factory must build norms over the last axis, {type(new).__name__} is over another")
    if carry_affine:
        try:
            carry_scale_and_shift(traits, new)
        except ValueError as error:
            raise ValueError(f"{site.name}: {error}; to drop it set carry_affine=False") from None
    flags = [parameter.requires_grad for parameter in old.parameters()]
    trainable = any(flags) or not flags
    same_names = dict(find_inner(old).named_parameters(recurse=False))
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(same_names[name].requires_grad if name in same_names else trainable)
    if traits.axis != -1:
        new = ChannelFirst(new, traits.axis)
    return (nn.Sequential(new, *traits.rest) if traits.rest else new).train(old.training)


def _read_device_and_dtype(*modules: nn.Module) -> dict[str, Any]:
    """Device and dtype of the first floating-point parameter, asking each module in turn; empty without any."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return {"device": parameter.device, "dtype": parameter.dtype}
    return {}


def _carry_attachments(site: Site, new: nn.Module) -> Iterator[str]:
    """Moves hooks to a new norm; yields notes on them and on computed weights."""
    for weight, kind in list_computed_weights(site.norm):
        yield f"{site.name}: {kind} of {weight} is gone, the new norm's {weight} is a parameter"
    for change in carry_hooks(site.norm, new):
        yield f"{site.name}: {change}"


def _disable_fast_paths(model: nn.Module, new_norms: set[nn.Module]) -> Iterator[str]:
    """Switches fused kernels off which would compute LayerNorm from a new norm's parameters; yields notes on them."""
    for name, change in avoid_fused_kernels(model, new_norms):
        yield f"{name}: {change}, its fused kernel would bypass the new norms"


def _note_shared(sites: list[Site]) -> Iterator[str]:
    first: dict[int, str] = {}
    for site in sites:
        other = first.setdefault(id(site.norm), site.name)
        if other != site.name:
            yield f"{site.name} and {other} are one shared norm"


def _describe(norm: nn.Module, traits: NormTraits | None = None) -> str:
    """Class, channels and eps of a norm, e.g. LayerNorm(192, eps=1e-06), and what is wrapped around it."""
    if isinstance(norm, ChannelFirst):
        return f"ChannelFirst({_describe(norm.norm, traits)})"
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
