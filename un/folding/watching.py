"""Watches the modules of a traced model: which one runs, what norms do, and which are never reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, jit, nn

from un.folding.graph import LinearUse, Read
from un.folding.recorder import ModuleCall, Recorder
from un.folding.sites import FoldSite

CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # never run themselves; which of their modules do is up to the model's code


def watch_modules(
    recorder: Recorder, run_unseen: Callable[..., Any], model: nn.Module, sites: Sequence[FoldSite]
) -> None:
    """Replaces the forward of every module by one that is watched.

    Args:
        recorder: is told what happens.
        run_unseen: calls a function without recording its operations.
        model: the copy to be traced.
        sites: its norms.
    """
    numbers = {site.norm: index for index, site in enumerate(sites) if not site.obstacle}
    for name, module in list(model.named_modules()):
        index = numbers.get(module)
        if index is not None:
            _watch_norm(recorder, run_unseen, name, index, sites[index])
        elif not isinstance(module, jit.ScriptModule):
            _watch_module(recorder, run_unseen, module, name)


def _watch_module(recorder: Recorder, run_unseen: Callable[..., Any], module: nn.Module, name: str) -> None:
    forward = module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        call = ModuleCall(name, module)
        recorder.calls.append(call)
        try:
            out = forward(*args, **kwargs)
        finally:
            recorder.calls.pop()
        recorder.graph.padding_counts.setdefault(name, set()).add(call.num_paddings)
        run_unseen(recorder.record_output, name, out)
        run_unseen(recorder.record_boundary, name, (args, kwargs, out))
        return out

    module.forward = watched


def _watch_norm(recorder: Recorder, run_unseen: Callable[..., Any], name: str, index: int, site: FoldSite) -> None:
    forward: Callable[..., Tensor] = site.norm.forward

    def watched(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.shape[site.channel_axis] != len(site.scale):  # a variant of the example that only broadcasts
            raise ValueError(f"{name} is over {len(site.scale)} channels, got {x.shape[site.channel_axis]}")
        out: Tensor = run_unseen(forward, x, *args, **kwargs)
        recorder.record_raw_read(x, "input of a norm")
        run_unseen(recorder.record_norm, index, x, out, site.channel_axis, bool(args or kwargs))
        recorder.graph.padding_counts.setdefault(name, set()).add(0)
        return out

    site.norm.forward = watched


def note_unreached(recorder: Recorder, model: nn.Module) -> None:
    """Lets a module that no run reached read what those beside it in its list, or its owner, have met.

    Which expert, adapter or head runs, and whether a layer does, may depend on the input.
    """
    used = {source.weight.name for source in recorder.graph.sources if isinstance(source, LinearUse)}
    used |= set(recorder.graph.raw_reads)
    unreached: list[str] = []
    for name, module in model.named_modules():
        known = name in recorder.graph.padding_counts or isinstance(module, CONTAINERS)
        known |= not any(True for _ in module.parameters())
        known |= any(parameter.startswith(f"{name}.") for parameter in used)
        if not known and not any(name.startswith(f"{other}.") for other in unreached):
            unreached.append(name)
            for place in _list_places(recorder, model, name):
                reader = f"{name}, which the example does not reach,"
                recorder.graph.reads += [Read(codes, reader) for codes in recorder.boundaries.get(place, ())]
    if unreached:
        recorder.graph.notes.append(f"not reached on the example inputs, and left as they were: {', '.join(unreached)}")


def _list_places(recorder: Recorder, model: nn.Module, name: str) -> list[str]:
    """Modules whose inputs and outputs an unreached one could read: those like it in its list, or else its owner."""
    path = name.rpartition(".")[0]
    parent = model.get_submodule(path)
    if isinstance(parent, CONTAINERS):
        alike = [
            f"{path}.{key}" for key, other in parent.named_children() if _is_twin(model.get_submodule(name), other)
        ]
        return [place for place in alike if place in recorder.boundaries] or _list_places(recorder, model, path)
    return [path]


def _is_twin(module: nn.Module, other: nn.Module) -> bool:
    shapes = [[tuple(parameter.shape) for parameter in candidate.parameters()] for candidate in (module, other)]
    return module is not other and type(module) is type(other) and shapes[0] == shapes[1]
