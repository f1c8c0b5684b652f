"""Finds the norms of a built model and replaces them in place.

A site is a module that normalises over channels: every module with a `normalized_shape` (`nn.LayerNorm`, `nn.RMSNorm`,
the LayerNorm, RmsNorm and SimpleNorm families of timm, apex and fairseq) and every norm of `un.norms`, e.g. from an
earlier surgery. The attribute is the mark because it is what these families share: timm's RmsNorm and SimpleNorm derive
from nothing but `nn.Module`. BatchNorm and GroupNorm, which mean something else, are never sites.

Globs are those of `fnmatch` on dotted module names, where `*` also crosses dots: "*.norm1", "blocks.*", "*blocks.1?.*".
Naming sites by glob, and the error when two rules claim one site, follow pytorch/torchtitan's overrides.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from un.norms.base import Norm
from un.norms.fused_kernels import avoid_fused_kernels
from un.norms.layout import ChannelFirst, is_channel_first

NormFactory = Callable[..., nn.Module]

SUGGESTIONS = 3  # site names offered when a glob matches nothing


@dataclass(frozen=True)
class Row:
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
        notes: what else changed in the model.
    """

    rows: tuple[Row, ...]
    kept: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        kept = [Row(row.site, row.old, "kept") for row in self.kept]
        table = [Row("site", "old", "new"), *self.rows, *kept]
        site_width, old_width = max(len(row.site) for row in table), max(len(row.old) for row in table)
        lines = [f"{row.site:{site_width}}  {row.old:{old_width}}  {row.new}" for row in table]
        return "\n".join([*lines, *self.notes, f"{len(self.rows)} norms replaced, {len(self.kept)} kept"])


@dataclass(frozen=True)
class _Site:
    name: str
    parent: nn.Module
    attribute: str
    norm: nn.Module


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
    Norms over (B, C, H, W) maps come back inside `ChannelFirst`; a norm with an activation of its own (timm's
    `LayerNormAct2d`) becomes a Sequential of the new norm and that activation.

    Args:
        model: any built model; it must hold norms, not be one.
        norm_factory: called as `norm_factory(num_features, device=, dtype=)`, with `affine=False` as well where the old
            norm has no weight. A mapping from glob to factory gives different sites different norms.
        include: sites to replace; every glob must match at least one norm.
        exclude: sites to keep; at least one of the globs must match, so that one list can serve several models.
        carry_affine: copy weight and bias where both norms have them.

    Raises:
        ValueError: model without norms or a norm itself; a glob without match; nothing left to replace; two mapping
            globs on one site; a shared norm selected under only some of its names; a norm over several axes; with
            carry_affine, a weight that is not 1 or a bias that is not 0 where the new norm has none.
    """
    if is_norm(model):
        raise ValueError(f"the model itself is a norm, {_describe(model)}: pass the module that holds it")
    sites = list(_find_sites(model))
    if not sites:
        raise ValueError(f"{type(model).__name__} has no norm to replace: no LayerNorm, no RMSNorm, none of un.norms")
    factories = _assign_factories([site.name for site in sites], norm_factory, include, exclude)
    _check_shared(sites, factories)
    new_norms: dict[int, nn.Module] = {}
    for site in sites:
        if site.name in factories and id(site.norm) not in new_norms:
            new_norms[id(site.norm)] = _build_norm(site, factories[site.name], model, carry_affine)
    rows = [Row(site.name, _describe(site.norm), _describe(new_norms.get(id(site.norm), site.norm))) for site in sites]
    for site in sites:
        if site.name in factories:
            setattr(site.parent, site.attribute, new_norms[id(site.norm)])
    notes = [*_note_shared(sites), *_disable_fast_paths(model, set(new_norms.values()))]
    replaced = tuple(row for row in rows if row.site in factories)
    return SurgeryReport(replaced, tuple(row for row in rows if row.site not in factories), tuple(notes))


def reset_norm_steps(model: nn.Module) -> int:
    """Calls `reset_steps()` on every norm that counts steps, as official UN advises before fine-tuning.

    Returns:
        The number of norms reset; 0 where no norm counts.
    """
    counters = [module for module in model.modules() if isinstance(module, Norm) and hasattr(module, "reset_steps")]
    for norm in counters:
        norm.reset_steps()  # type: ignore[operator]
    return len(counters)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a site: a norm over channels, of `un.norms` or with a `normalized_shape`."""
    return isinstance(module, Norm | ChannelFirst) or hasattr(module, "normalized_shape")


def _find_sites(module: nn.Module, prefix: str = "") -> Iterator[_Site]:
    """Every name of every norm; does not look for norms inside norms."""
    for attribute, child in module._modules.items():  # named_children() would skip the second name of a shared child
        if child is None:
            continue
        if is_norm(child):
            yield _Site(prefix + attribute, module, attribute, child)
        else:
            yield from _find_sites(child, f"{prefix}{attribute}.")


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


def _check_shared(sites: list[_Site], factories: dict[str, NormFactory]) -> None:
    """Raises where the names of one norm object would get different norms."""
    first: dict[int, str] = {}
    for site in sites:
        other = first.setdefault(id(site.norm), site.name)
        if factories.get(site.name) is not factories.get(other):
            raise ValueError(f"{other} and {site.name} are one shared norm: include, exclude or map both or neither")


def _build_norm(site: _Site, norm_factory: NormFactory, model: nn.Module, carry_affine: bool) -> nn.Module:
    """The module which takes the place of a norm, wrapped as its layout and activation need."""
    old = site.norm
    options = _read_device_and_dtype(old, site.parent, model)
    if getattr(old, "weight", None) is None:
        options["affine"] = False
    new = norm_factory(_read_num_features(site), **options)
    if carry_affine:
        _carry_affine(site.name, old, new)
    flags = [parameter.requires_grad for parameter in old.parameters()]
    trainable = any(flags) or not flags
    for name, parameter in new.named_parameters():
        old_parameter = getattr(old, name, None)
        parameter.requires_grad_(trainable if old_parameter is None else old_parameter.requires_grad)
    foreign = not isinstance(old, Norm | ChannelFirst)
    if isinstance(old, ChannelFirst) or (foreign and is_channel_first(old)):
        new = ChannelFirst(new)
    if foreign:
        # timm's norms with an activation own it as children, in the order of application; Identity means there is none.
        rest = [child for child in old.children() if not isinstance(child, nn.Identity)]
        new = nn.Sequential(new, *rest) if rest else new
    return new.train(old.training)


def _read_num_features(site: _Site) -> int:
    if isinstance(site.norm, Norm | ChannelFirst):
        return site.norm.num_features
    shape = tuple(site.norm.normalized_shape)  # type: ignore[arg-type]
    if len(shape) != 1:
        raise ValueError(f"{site.name} normalises over axes of shape {shape}, not over channels alone: exclude it")
    return shape[0]


def _read_device_and_dtype(*modules: nn.Module) -> dict[str, Any]:
    """Device and dtype of the first floating-point parameter, asking each module in turn; empty without any."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return {"device": parameter.device, "dtype": parameter.dtype}
    return {}


def _carry_affine(name: str, old: nn.Module, new: nn.Module) -> None:
    for parameter, neutral in (("weight", 1.0), ("bias", 0.0)):
        source, target = getattr(old, parameter, None), getattr(new, parameter, None)
        if source is None:
            continue
        if target is not None:
            with torch.no_grad():
                target.copy_(source)
        elif not source.is_meta and bool((source != neutral).any()):
            raise ValueError(
                f"{name}: {type(new).__name__} has no {parameter} to take the {parameter} of {type(old).__name__}, "
                f"which is not {neutral:g} everywhere; to drop it set carry_affine=False"
            )


def _disable_fast_paths(model: nn.Module, new_norms: set[nn.Module]) -> Iterator[str]:
    """Switches fused kernels off which would compute LayerNorm from a new norm's parameters; yields notes on them."""
    for name, change in avoid_fused_kernels(model, new_norms):
        yield f"{name}: {change}, its fused kernel would bypass the new norms"


def _note_shared(sites: list[_Site]) -> Iterator[str]:
    first: dict[int, str] = {}
    for site in sites:
        other = first.setdefault(id(site.norm), site.name)
        if other != site.name:
            yield f"{site.name} and {other} are one shared norm"


def _describe(norm: nn.Module) -> str:
    """Class, channels and eps of a norm, e.g. LayerNorm(192, eps=1e-06), and what is wrapped around it."""
    if isinstance(norm, ChannelFirst):
        return f"ChannelFirst({_describe(norm.norm)})"
    if isinstance(norm, nn.Sequential):
        return " + ".join([_describe(norm[0]), *(type(module).__name__ for module in norm[1:])])
    shape = getattr(norm, "normalized_shape", ())
    details = ["x".join(map(str, shape)) or str(getattr(norm, "num_features", "?"))]
    if getattr(norm, "eps", None) is not None:
        details.append(f"eps={norm.eps:g}")
    if getattr(norm, "weight", None) is None:
        details.append("affine=False")
    return f"{type(norm).__name__}({', '.join(details)})"
