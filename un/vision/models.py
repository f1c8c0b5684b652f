"""Models by name through timm, and weights from elsewhere."""

import difflib
import logging
from typing import Any

import timm
from timm.models import load_state_dict
from torch import Tensor, nn

import un.vision.t2t_vit  # noqa: F401  registers its models with timm

EMA_PREFIX, MODEL_PREFIX = "ema.module.", "model."  # of `ImageClassification` in a Lightning checkpoint
NUM_SUGGESTIONS = 3
NUM_NAMES_SHOWN = 5

logger = logging.getLogger(__name__)


def create_model(name: str, **arguments: Any) -> nn.Module:
    """Build a timm model, T2T-ViT included, with any argument that timm takes for it.

    `img_size` is left out for models that take images of any size, so that data may always give it.

    Raises:
        ValueError: Unknown name, or arguments that the model does not take.
    """
    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), NUM_SUGGESTIONS)
        hint = f"nearest: {', '.join(nearest)}" if nearest else "timm.list_models() names all"
        raise ValueError(f"model.name={name!r} is not known to timm; {hint}")
    config = timm.get_pretrained_cfg(name)
    if config is not None and not config.fixed_input_size:
        arguments.pop("img_size", None)
    try:
        return timm.create_model(name, **arguments)
    except (TypeError, AssertionError, RuntimeError) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ValueError(f"model {name!r} cannot be built with {shown}: {error}") from error


def load_outside_weights(model: nn.Module, path: str) -> None:
    """Load weights from a torch or safetensors file into the model, in place.

    Takes a plain state dict, a training checkpoint (its moving average first, if it has one) or a checkpoint of a run
    of ours. The head stays freshly initialised where the class count differs; anything else must fit exactly.

    Raises:
        ValueError: No such file, not a checkpoint or cut short, or weights of another model.
    """
    state = select_weights(read_weights(path))
    own = model.state_dict()
    for name in list_head_parameters(model):
        if name in state and own[name].shape[1:] == state[name].shape[1:] and len(own[name]) != len(state[name]):
            logger.warning("%s: %s has %d classes and is left out", path, name, len(state[name]))
            state[name] = own[name]
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [name for name in own if name in state and own[name].shape != state[name].shape],
    }
    found = [f"{what}: {shorten(names)}" for what, names in problems.items() if names]
    if found:
        raise ValueError(f"init_weights={path} does not fit the model; {'; '.join(found)}")
    model.load_state_dict(state)


def read_weights(path: str) -> dict[str, Tensor]:
    """Return the state dict in a file, by timm's reader and without running code from the file."""
    try:
        state = load_state_dict(path, use_ema=True, weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"init_weights={path}: no such file") from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"init_weights={path} is cut short or no file of weights ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"init_weights={path} holds no weights")
    return state


def select_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the moving average of a checkpoint of ours, else its model; anything else as it is."""
    for prefix in (EMA_PREFIX, MODEL_PREFIX):
        chosen = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if chosen:
            return chosen
    return dict(state)


def list_head_parameters(model: nn.Module) -> list[str]:
    """Return the names of the classifier's parameters, of all classifiers where there are several."""
    get_classifier: Any = getattr(model, "get_classifier", tuple)
    heads = get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    ids = {id(parameter) for head in heads for parameter in head.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in ids]


def shorten(names: list[str]) -> str:
    """Return the first few names and how many more there are."""
    more = f" and {len(names) - NUM_NAMES_SHOWN} more" if len(names) > NUM_NAMES_SHOWN else ""
    return ", ".join(names[:NUM_NAMES_SHOWN]) + more
