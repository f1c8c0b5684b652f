"""Turns a copy of the model into the folded one, as a plan says."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from un.folding.frames import Fill, Form, Frames
from un.folding.graph import Graph
from un.folding.padding import FILL, install_fills
from un.folding.rewrite import Rewrite
from un.folding.sites import FoldSite, read_dtype, remove_affine
from un.folding.solver import Solver
from un.surgery.attachments import avoid_fused_kernels, carry_hooks


class ScaleShift(nn.Module):
    """What is left of a norm that cannot vanish: scale * x + shift, or scale * x alone, in x's type.

    It is computed in the type of the wider of x and scale.

    Args:
        scale: (C,) where the channels are last, (C, 1, ...) with one 1 per axis behind them where they are not.
        shift: of scale's shape; None for a multiplication alone.
    """

    scale: Tensor
    shift: Tensor | None

    def __init__(self, scale: Tensor, shift: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Maps x; pad_mask is ignored, as by every norm at inference."""
        y = x * self.scale if self.shift is None else torch.addcmul(self.shift, x, self.scale)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.scale.shape[0]}" + ("" if self.shift is not None else ", shift=False")


class PassOn(nn.Identity):
    """Takes the place of a norm that a model calls with a padding mask; returns x."""

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        return x


@dataclass(frozen=True)
class Plan:
    """Everything that turns a model into the folded one, in float64."""

    solver: Solver
    forms: list[Form]  # of each site
    reasons: dict[int, str]  # site -> why better forms were impossible
    frames: Frames
    rewrite: Rewrite
    untied: tuple[str, ...]  # names of weights that get a memory of their own
    obstacle: str  # why the model was not traced in float64; empty where it was

    @property
    def sites(self) -> Sequence[FoldSite]:
        return self.solver.sites

    @property
    def graph(self) -> Graph:
        return self.solver.graph

    @property
    def dtype(self) -> torch.dtype | None:
        """In which the model was traced, float64; None for its own."""
        return None if self.obstacle else torch.float64

    @property
    def fills(self) -> dict[tuple[str, int], Fill]:
        """What calls of `F.pad` put in, where it is not the model's own constant."""
        return {call: fill for call, fill in self.frames.fills.items() if not fill.is_plain}

    def list_moved(self) -> list[str]:
        """Returns the names of the norms of which something has gone into other layers."""
        placed = zip(self.sites, self.forms, strict=True)
        return [site.name for site, form in placed if form is not Form.KEEP and not site.is_layer_scale]

    def list_changed_modules(self) -> set[str]:
        """Returns the names of the modules that give other values in the folded model."""
        outputs = self.graph.outputs.items()
        changed = {name for name, calls in outputs if not bool(self.frames.is_plain(torch.cat(calls)).all())}
        return changed | {name for site in self.sites for name in site.names}


def untie_projections(model: nn.Module) -> tuple[str, ...]:
    """Gives every Linear that shares its weight with another kind of module a copy; returns the weights' names."""
    holders: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(module)
    names = []
    for name, module in model.named_modules():
        sharing = holders.get(id(module.weight), []) if isinstance(module, nn.Linear) else []
        if any(not isinstance(holder, nn.Linear) for holder in sharing):
            names.append(f"{name}.weight")
            _untie(module)
    return tuple(names)


def _untie(module: nn.Module) -> None:
    weight = module.get_parameter("weight")
    module.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)


def apply_plan(plan: Plan, model: nn.Module) -> None:
    """Changes a copy of the planned model in place; values are cast to the type of what they replace.

    Raises:
        ArithmeticError: a value does not fit the type.
    """
    for name in plan.untied:
        _untie(model.get_submodule(name.rpartition(".")[0]))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in plan.rewrite.values.items():
            tensors[name].copy_(_cast(name, value, tensors[name]))
    for name, bias in plan.rewrite.new_biases.items():
        module = model.get_submodule(name)
        weight = module.get_parameter("weight")
        module.bias = nn.Parameter(_cast(f"{name}.bias", bias, weight), requires_grad=weight.requires_grad)
    _install_fills(plan, model)
    avoid_fused_kernels(model, {model.get_submodule(site.name) for site in plan.sites})
    for index in range(len(plan.sites)):
        _replace_norm(plan, index, model)


def _install_fills(plan: Plan, model: nn.Module) -> None:
    for name in {module for module, _ in plan.fills}:
        module = model.get_submodule(name)
        like = next(tensor for tensor in (*module.parameters(), *model.parameters()) if tensor.is_floating_point())
        fills = {
            f"{FILL}{index}": _cast(f"{name} padding", fill.lay_out(), like)
            for (owner, index), fill in plan.fills.items()
            if owner == name
        }
        install_fills(module, fills, plan.graph.padding_counts[name])


def _replace_norm(plan: Plan, index: int, model: nn.Module) -> None:
    """Puts what is left of a norm in its place, under all its names."""
    site, form, calls = plan.sites[index], plan.forms[index], plan.solver.calls[index]
    norm = model.get_submodule(site.name)
    new: nn.Module
    if index in plan.frames.residues:
        scale, shift = plan.frames.residues[index]
        if site.is_layer_scale and torch.equal(scale, site.scale.cpu()) and not bool(shift.any()):
            return
        num_dims = calls[0].num_dims
        shape = (-1, *[1] * (num_dims - 1 - site.channel_axis % num_dims))
        like = next(itertools.chain(norm.parameters(), norm.buffers()))
        like = torch.empty(0, dtype=read_dtype(norm), device=like.device)
        values = [_cast(site.name, value.view(shape), like) for value in (scale, shift)]
        new = ScaleShift(values[0], values[1] if form is Form.KEEP else None)
    elif form is Form.KEEP:
        return
    elif not site.offline:
        remove_affine(norm, site.neutral)
        return
    else:
        new = PassOn() if any(call.more_arguments for call in calls) else nn.Identity()
    carry_hooks(norm, new)
    for name in site.names:
        model.set_submodule(name, new.train(norm.training))


def _cast(name: str, value: Tensor, like: Tensor) -> Tensor:
    cast = value.to(like, copy=True)
    if not bool(cast.isfinite().all()) and bool(value.isfinite().all()):
        raise ArithmeticError(
            f"{name} does not fit {cast.dtype} after folding: its largest value is {value.abs().max():.1e}"
        )
    return cast
