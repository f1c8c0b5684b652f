"""Folded models in files: what tells one from its original, and turning a model of the plain class into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from un.files import replace_file
from un.folding.apply import PassOn, ScaleShift
from un.folding.inputs import InputGuard
from un.folding.padding import FILL, find_padded_forward, install_fills
from un.surgery.attachments import avoid_fused_kernels
from un.weights import check_state, read_checkpoint

FOLDED_FILE = Path("checkpoints/folded.ckpt")  # in a run folder
STAND_INS: dict[str, type[nn.Module]] = {"Identity": nn.Identity, "PassOn": PassOn, "ScaleShift": ScaleShift}


def save_folded(path: Path | str, model: nn.Module, folded: nn.Module, **notes: Any) -> None:
    """Writes a file for `load_folded`, whole or not at all.

    Args:
        path: Of the file.
        model: What `fold_norms` was given.
        folded: What it returned.
        **notes: Plain values to keep with it.
    """
    content = {"state_dict": folded.state_dict(), "changes": list_changes(model, folded), **notes}
    with replace_file(Path(path), binary=True) as file:
        torch.save(content, file)


def load_folded(path: Path | str, model: nn.Module) -> nn.Module:
    """Turns a model into the folded one of a checkpoint.

    Args:
        path: A run folder that `scripts/fold.py` was called for, or the file that it or `save_folded` wrote.
        model: Of the plain class, with LayerNorm or any other norms in their places and any weights; changed in place.

    Returns:
        The model, in evaluation mode, without the norms that were folded.

    Raises:
        ValueError: There is no such file, or it is of another model.
    """
    path = Path(path)
    path = path / FOLDED_FILE if path.is_dir() else path
    content = read_checkpoint(path)
    if not {"state_dict", "changes"} <= content.keys() or "inputs" not in content["changes"]:
        raise ValueError(
            f"{path} is not a folded checkpoint as scripts/fold.py and save_folded write it: fold the model again"
        )
    state: Mapping[str, Tensor] = content["state_dict"]
    try:
        apply_changes(model, content["changes"], state)
    except AttributeError as error:
        raise ValueError(f"{path} is of another model: {error}") from None
    check_state(model, state, path)
    model.load_state_dict(state)
    return model.eval()


def list_changes(model: nn.Module, folded: nn.Module) -> dict[str, Any]:
    """Returns what tells a folded model from its original, apart from values, as plain lists and mappings."""
    before, after = (dict(candidate.named_modules(remove_duplicate=False)) for candidate in (model, folded))
    old, new = (dict(candidate.named_parameters(remove_duplicate=False)) for candidate in (model, folded))
    stand_ins = {name: kind for name, module in after.items() if (kind := type(module).__name__) in STAND_INS}
    replaced = {name: kind for name, kind in stand_ins.items() if type(before[name]) is not type(after[name])}
    inside = tuple(f"{name}." for name in replaced)
    guard: Any = folded.input_guard
    uses_before, uses_now = (Counter(map(id, parameters.values())) for parameters in (old, new))
    return {
        "replaced": replaced,
        "removed": [name for name in old if name not in new and not name.startswith(inside)],
        "added": [name for name in new if name not in old],
        "untied": sorted(n for n in old.keys() & new if uses_before[id(old[n])] > 1 and uses_now[id(new[n])] == 1),
        "padded": {name: list(padded.counts) for name, m in after.items() if (padded := find_padded_forward(m))},
        "inputs": {"kinds": guard.kinds, "positions": list(guard.positions)},
    }


def apply_changes(model: nn.Module, changes: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Gives a model the form of the folded one, whose values are in `state`."""
    for name, kind in changes["replaced"].items():
        tensors = [state.get(f"{name}.{part}") for part in ("scale", "shift")] if kind == "ScaleShift" else []
        model.set_submodule(name, STAND_INS[kind](*tensors).train(model.get_submodule(name).training))
    for name in changes["removed"]:
        parent, attribute = find_parent(model, name)
        if attribute in parent._parameters:
            parent.register_parameter(attribute, None)
    for name in (*changes["added"], *changes["untied"]):
        parent, attribute = find_parent(model, name)
        setattr(parent, attribute, nn.Parameter(torch.empty_like(state[name])))
    for name, counts in changes["padded"].items():
        prefix = f"{name}." if name else ""
        fills = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(f"{prefix}{FILL}")}
        install_fills(model.get_submodule(name), fills, counts)
    InputGuard(changes["inputs"]["kinds"], changes["inputs"]["positions"]).install(model)
    sites = {*changes["replaced"], *(name.rpartition(".")[0] for name in changes["removed"])}
    avoid_fused_kernels(model, {model.get_submodule(site) for site in sites})


def find_parent(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Returns the module that holds a dotted name, and the name there."""
    parent, _, attribute = name.rpartition(".")
    return model.get_submodule(parent), attribute
