"""Reads checkpoints and outside weights, and says in one line what is wrong with them."""

import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from un.command.errors import UserError

# Where published checkpoints keep their state dict, averaged weights first: timm, DeiT and T2T-ViT, plain torch.
NESTED_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
# Prefixes of the model in a state dict, averaged weights first: our task modules, then torch's parallel wrappers.
MODEL_PREFIXES = ("ema.module.", "model.", "module.")
SHOWN_NAMES = 3
log = logging.getLogger(__name__)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a file of torch.save with weights_only=True, or a safetensors file.

    Raises:
        UserError: there is no such file, it is cut short, or it holds anything but tensors and plain values, which is
            not loaded because a pickle can run any code.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} {_explain_refusal(error)}") from None
    except Exception as error:  # the unpickler meets foreign bytes with whatever they make it do
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(f"{path} is cut short or not a checkpoint ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return content


def check_state(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Raises a UserError where the names or shapes of a state dict are not the module's."""
    own = module.state_dict()
    problems = {
        "lacks": [name for name in own if name not in state],
        "has unknown": [name for name in state if name not in own],
        "has other shapes for": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in state and isinstance(own[name], Tensor) and state[name].shape != own[name].shape
        ],
    }
    found = [f"{text} {_shorten(names)}" for text, names in problems.items() if names]
    if found:
        raise UserError(f"{path} is of another model: it {', '.join(found)}")


def read_model_weights(path: Path) -> dict[str, Tensor]:
    """Returns a model's state dict out of our checkpoints or published ones, averaged weights where there are any."""
    content: Any = read_checkpoint(path)
    for key in NESTED_KEYS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    for prefix in MODEL_PREFIXES:
        inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if inside:
            return inside
    if not state:
        raise UserError(f"{path} holds no weights")
    return state


def drop_other_head(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leaves out a classifier for another number of classes; the model's new one keeps its initial values.

    Classifiers are what the model's `get_classifier()` returns, as in timm. Nothing else may differ.
    """
    get_classifier: Any = getattr(model, "get_classifier", lambda: None)
    found = get_classifier()
    classifiers = found if isinstance(found, tuple | list) else [found]  # distilled models have two
    heads = [name for name, module in model.named_modules() if any(module is one for one in classifiers)]
    own = model.state_dict()
    dropped = [
        name
        for name in (f"{head}.{kind}" for head in heads for kind in ("weight", "bias"))
        if name in state and name in own
        if state[name].shape[1:] == own[name].shape[1:] and len(state[name]) != len(own[name])
    ]
    if dropped:
        log.info("left out, being for another number of classes: %s", ", ".join(dropped))
    return {**state, **{name: own[name] for name in dropped}}


def _explain_refusal(error: pickle.UnpicklingError) -> str:
    """Returns why a pickle was not loaded; torch's own message is a page long and tells how to load it after all."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found is None:
        return "is cut short or not a checkpoint, or a pickle that could run code when loaded"
    return f"is refused: it holds {found[1]}, not a tensor or plain value, and loading such things can run any code"


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
