"""Weights that a training starts from: out of our checkpoints, or published ones."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from un.command.errors import UserError
from un.weights import read_checkpoint

# Where published checkpoints keep their state dict, averaged weights first: timm, DeiT and T2T-ViT, plain torch.
NESTED_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
# Prefixes of the model in a state dict, averaged weights first: our task modules, then torch's parallel wrappers.
MODEL_PREFIXES = ("ema.module.", "model.", "module.")
log = logging.getLogger(__name__)


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
