"""Builds the object that one node of a config names, after checking its arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from un.command.errors import UserError, suggest
from un.command.value_types import check_kind, check_kinds

# What constructors of libraries raise for values they cannot use.
LIBRARY_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def build_part(config: DictConfig, key: str, **objects: Any) -> Any:
    """Builds one node of the config and hands it objects that a config cannot hold.

    Raises:
        UserError: the node has no `_target_`, or arguments that the target does not take.
    """
    node = OmegaConf.select(config, key)
    if not isinstance(node, DictConfig) or node.get("_target_") is None:
        raise UserError(f"{key} has no _target_, so nothing can be built from it: {node}")
    _check_nested(key, OmegaConf.to_container(node, resolve=True))
    partial = read_partial(key, node)
    if node.get("_partial_", False):
        check_arguments(key, partial.func, partial.keywords)
        return functools.partial(_call, key, partial)
    check_arguments(key, partial.func, partial.keywords, objects)
    return _call(key, partial, **objects)


def read_partial(key: str, node: DictConfig) -> functools.partial[Any]:
    """Returns what a node names with its arguments, not called yet, whatever its own `_partial_` is."""
    check_kind(f"{key}._partial_", node.get("_partial_", False), bool)
    partial: functools.partial[Any] = instantiate(node, _partial_=True, _convert_="all")
    return partial


def _call(key: str, partial: functools.partial[Any], *arguments: Any, **objects: Any) -> Any:
    """Calls what a node names; a library's error becomes a UserError that names the node."""
    is_ours = partial.func.__module__.partition(".")[0] == "un"
    try:
        return partial(*arguments, **objects)
    except LIBRARY_ERRORS as error:
        if is_ours and not isinstance(error, TypeError):
            raise
        raise UserError(f"{key}: {error}") from error


def _check_nested(key: str, node: Any) -> None:
    """Checks the nodes inside a node, which are built before it."""
    for name, child in node.items():
        if isinstance(child, dict) and child.get("_target_") is not None:
            check_kind(f"{key}.{name}._target_", child["_target_"], str)
            _check_nested(f"{key}.{name}", child)
            plain = {k: v for k, v in child.items() if not k.startswith("_") and not isinstance(v, dict)}
            check_arguments(f"{key}.{name}", get_object(child["_target_"]), plain)


def check_arguments(
    key: str, target: Callable[..., Any], arguments: Mapping[str, Any], objects: Mapping[str, Any] | None = None
) -> None:
    """Compares arguments of the config with the signature and the annotations of what takes them.

    `objects` are the other arguments, or None where they are not known yet.
    """
    try:
        signature = inspect.signature(target)
    except ValueError:  # a target written in C, such as datetime.timedelta, tells nothing about itself
        return
    names = list(signature.parameters)
    open_ended = any(entry.kind is inspect.Parameter.VAR_KEYWORD for entry in signature.parameters.values())
    unknown = [] if open_ended else [name for name in arguments if name not in names]
    if unknown:
        raise UserError(f"{key} has no option '{unknown[0]}'{suggest(unknown[0], names) or f'; it takes {names}'}")
    try:
        (signature.bind_partial if objects is None else signature.bind)(**{**arguments, **(objects or {})})
    except TypeError as error:
        raise UserError(f"{key}: {error}") from None
    check_kinds(key, target, arguments)
