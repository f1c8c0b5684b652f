"""Folded models of runs: folding, and a checkpoint that loads into the plain model class and leaves out its norms."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from omegaconf import DictConfig
from torch import Tensor, nn

from un.command.errors import UserError
from un.files import replace_file
from un.finished.open_run import FinishedRun, open_run
from un.folding import FoldReport, ScaleShift, fold_norms
from un.folding.apply import PassOn
from un.folding.inputs import InputGuard, Inputs
from un.folding.padding import FILL, find_padded_forward, install_fills
from un.folding.verify import list_tensors, measure_difference
from un.surgery.attachments import avoid_fused_kernels
from un.tasks import InferenceTask
from un.training.weights import check_state, read_checkpoint

FOLDED_FILE = "folded.ckpt"
TOLERANCE = 1e-4  # relative, of float32 outputs on a batch that the fold did not see
STAND_INS: dict[str, type[nn.Module]] = {"Identity": nn.Identity, "PassOn": PassOn, "ScaleShift": ScaleShift}


def require_inference(module: LightningModule) -> InferenceTask:
    """Returns the module as what folding and exporting need.

    Raises:
        UserError: Its task does not offer it.
    """
    missing = [name for name in ("inference_model", "make_fold_inputs", "cut_graph") if not hasattr(module, name)]
    if missing:
        raise UserError(f"task {type(module).__name__} cannot be folded or exported: it has no {', '.join(missing)}")
    task: Any = module
    return task


def fold_run(run: FinishedRun) -> tuple[nn.Module, FoldReport]:
    """Folds the model of a run on generated examples; the run's own model stays as it is.

    Raises:
        UserError: It has no norms, or its fold is not exact enough.
    """
    task = require_inference(run.module)
    batch = run.inference_data.make_example_batch(seed=0)
    try:
        return fold_norms(task.inference_model, task.make_fold_inputs(batch))
    except (ArithmeticError, ValueError) as error:
        raise UserError(f"{run.folder.path} cannot be folded: {error}") from error


def write_folded(config: DictConfig) -> Path:
    """Folds a finished run's model and writes the checkpoint and, beside it, the report as text.

    Args:
        config: composed from configs/fold.yaml.

    Raises:
        UserError: See `open_run` and `fold_run`; or what was written does not compute what the run's model does.
    """
    run = open_run(config)
    folded, report = fold_run(run)
    task = require_inference(run.module)
    path = Path(str(config.output or run.folder.checkpoints / FOLDED_FILE))
    path.parent.mkdir(parents=True, exist_ok=True)
    model = task.inference_model.eval()
    content = {
        "state_dict": folded.state_dict(),
        "changes": list_changes(model, folded),
        "report": str(report),
        "tested": run.tested,
    }
    with replace_file(path, binary=True) as file:
        torch.save(content, file)
    loaded = load_folded(path, copy.deepcopy(model))
    inputs = Inputs.of(task.make_fold_inputs(run.inference_data.make_example_batch(seed=1)))
    with torch.inference_mode():
        outputs = [list_tensors(inputs.run(candidate)) for candidate in (model, loaded)]
    difference = measure_difference(*outputs)
    if not difference <= TOLERANCE:
        raise UserError(f"{path} differs from the run's model by {difference:.1e} of the largest output")
    text = f"{report}\nread back: outputs on other examples differ by {difference:.1e} of the largest"
    path.with_suffix(".txt").write_text(f"{text}\n", encoding="utf-8")
    print(f"{text}\n{path}")
    return path


def load_folded(path: Path, model: nn.Module) -> nn.Module:
    """Turns a model into the folded one of a checkpoint.

    Args:
        path: a run folder that `scripts/fold.py` was called for, or the file that it wrote.
        model: of the plain class, with LayerNorm or any other norms in their places and any weights; changed in place.

    Returns:
        The model, in evaluation mode, without the norms that were folded.

    Raises:
        UserError: There is no such file, or it is of another model.
    """
    path = path / "checkpoints" / FOLDED_FILE if path.is_dir() else path
    content = read_checkpoint(path)
    if not {"state_dict", "changes"} <= content.keys() or "inputs" not in content["changes"]:
        raise UserError(f"{path} is not a folded checkpoint as scripts/fold.py writes it: fold the run again")
    state: Mapping[str, Tensor] = content["state_dict"]
    try:
        apply_changes(model, content["changes"], state)
    except AttributeError as error:
        raise UserError(f"{path} is of another model: {error}") from None
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
