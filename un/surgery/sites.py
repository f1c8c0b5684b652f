"""Finds the norms of a model, and chooses among them by glob.

Globs are those of `fnmatch` on dotted module names, where `*` also crosses dots: "*.norm1", "blocks.*", "*blocks.1?.*".
Naming sites by glob, and the error when two rules claim one site, follow pytorch/torchtitan's overrides.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from un.surgery.measurement import NormTraits
from un.surgery.mlps import find_first_layers, goes_into_mlps
from un.surgery.recognition import recognize_norm, walk_norms

NormFactory = Callable[..., nn.Module]
Globs = str | Sequence[str]

SUGGESTIONS = 3  # site names offered when a glob matches nothing


@dataclass(frozen=True)
class Site:
    """A norm, its dotted names (several where the model holds it more than once), and what was recognised in it.

    Or the first layer of an MLP, which stays and gets a new norm behind it.
    """

    names: tuple[str, ...]
    norm: nn.Module
    traits: NormTraits
    is_layer: bool = False


def find_sites(model: nn.Module) -> tuple[list[Site], list[str]]:
    """Returns every norm, and notes on what looks like a norm and cannot be replaced."""
    sites, left = list[Site](), list[str]()
    for names, norm, traits in walk_norms(model, recognize_norm):
        if traits.is_site:
            sites.append(Site(names, norm, traits))
        else:
            reason = f"{type(norm).__name__} looks like a norm, but {traits.obstacle}"
            left += [f"{name} was left: {reason}" for name in names]
    return sites, left


def find_mlp_sites(
    model: nn.Module, norm_factory: NormFactory | Mapping[str, NormFactory]
) -> tuple[list[Site], list[str]]:
    """Returns the places in MLPs for norms that go there, and notes on MLPs that have none; nothing for other norms.

    Raises:
        ValueError: the norm goes into MLPs, and the model has none.
    """
    factories = norm_factory.values() if isinstance(norm_factory, Mapping) else [norm_factory]
    if not any(map(goes_into_mlps, factories)):
        return [], []
    layers, left = find_first_layers(model)
    places = [Site((k,), layer, NormTraits(layer.out_features), is_layer=True) for k, layer in layers.items()]
    return places, left


def assign_factories(
    sites: Sequence[Site], norm_factory: NormFactory | Mapping[str, NormFactory], include: Globs, exclude: Globs
) -> dict[str, NormFactory]:
    """Maps the names of the sites to replace to their factory; see `replace_norms` for the errors."""
    names = [name for site in sites for name in site.names]
    included, excluded = _as_globs("include", include), _as_globs("exclude", exclude)
    for glob in included:
        _check_match("include", [glob], names)
    if excluded:
        _check_match("exclude", excluded, names)
    chosen = [name for name in names if _matches(name, included) and not _matches(name, excluded)]
    if not chosen:
        raise ValueError(f"include {included} and exclude {excluded} leave no norm to replace")
    factories = norm_factory if isinstance(norm_factory, Mapping) else {"*": norm_factory}
    assigned = {}
    for glob in factories:
        _check_match("norm glob", [glob], chosen)
    for name in chosen:
        claims = [glob for glob in factories if fnmatchcase(name, glob)]
        if len(claims) > 1:
            raise ValueError(f"norm globs {claims} all claim {name}: make them disjoint")
        if claims:
            assigned[name] = factories[claims[0]]
    for site in sites:
        if site.is_layer and not goes_into_mlps(assigned.get(site.names[0])):
            assigned.pop(site.names[0], None)
    for site in sites:
        if len({id(assigned.get(name)) for name in site.names}) > 1:
            listed = " and ".join(site.names)
            raise ValueError(f"{listed} are one shared norm: include, exclude or map all its names or none")
    return assigned


def _as_globs(argument: str, globs: Globs) -> list[str]:
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
