"""Models by name through timm."""

import difflib
from typing import Any

import timm
from torch import nn

import un.vision.t2t_vit  # noqa: F401  registers its models with timm

NUM_SUGGESTIONS = 3


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


def list_head_parameters(model: nn.Module) -> list[str]:
    """Return the names of the classifier's parameters, of all classifiers where there are several."""
    get_classifier: Any = getattr(model, "get_classifier", tuple)
    heads = get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    ids = {id(parameter) for head in heads for parameter in head.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in ids]
