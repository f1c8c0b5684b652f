"""Files of weights: reading one, and saying in one line why it is refused. Needs torch alone."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SHOWN_NAMES = 3


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a file of torch.save with weights_only=True, or a safetensors file.

    Raises:
        ValueError: There is no such file, it is cut short, or it holds anything but tensors and plain values, which is
            not loaded because a pickle can run any code.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} {_explain_refusal(error)}") from None
    except Exception as error:  # the unpickler meets foreign bytes with whatever they make it do
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ValueError(f"{path} is cut short or not a checkpoint ({reason})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return content


def check_state(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Raises a ValueError where the names or shapes of a state dict are not the module's."""
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
        raise ValueError(f"{path} is of another model: it {', '.join(found)}")


def _explain_refusal(error: pickle.UnpicklingError) -> str:
    """Returns why a pickle was not loaded; torch's own message is a page long and tells how to load it after all."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found is None:
        return "is cut short or not a checkpoint, or a pickle that could run code when loaded"
    return f"is refused: it holds {found[1]}, not a tensor or plain value, and loading such things can run any code"


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
