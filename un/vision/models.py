"""Models by name through timm."""

import difflib
from typing import Any

import timm
from torch import nn

import un.vision.t2t_vit  # noqa: F401  registers its models with timm

NUM_SUGGESTIONS = 3


def create_model(name: str, class_token_std: float | None = None, **arguments: Any) -> nn.Module:
    """Builds a timm model, T2T-ViT included, with any argument that timm takes for it.

    `img_size` is left out for models that take images of any size, so that data may always give it. The standard
    deviation of the initial class token is `class_token_std`, or the model's own.
    """
    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), NUM_SUGGESTIONS)
        hint = f"nearest: {', '.join(nearest)}" if nearest else "timm.list_models() names all"
        raise ValueError(f"model.name={name!r} is not known to timm; {hint}")
    config = timm.get_pretrained_cfg(name)
    if config is not None and not config.fixed_input_size:
        arguments.pop("img_size", None)
    try:
        model: nn.Module = timm.create_model(name, **arguments)
    except (TypeError, AssertionError, RuntimeError) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ValueError(f"model {name!r} cannot be built with {shown}: {error}") from error
    if class_token_std is not None:
        class_token = getattr(model, "cls_token", None)
        if class_token is None:
            raise ValueError(f"model.class_token_std={class_token_std}, but model {name!r} has no class token")
        nn.init.trunc_normal_(class_token, std=class_token_std)
    return model


def list_head_parameters(model: nn.Module) -> list[str]:
    """Returns the names of the classifier's parameters, of all classifiers where there are several."""
    get_classifier: Any = getattr(model, "get_classifier", tuple)
    heads = get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    ids = {id(parameter) for head in heads for parameter in head.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in ids]
