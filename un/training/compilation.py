"""torch.compile for the model of a run: `compile=true`, or with its options `compile={mode: max-autotune}`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from omegaconf import OmegaConf

from un.command.errors import UserError


@contextlib.contextmanager
def compile_in_training(model: Any, options: bool | Mapping[str, Any] | None) -> Iterator[None]:
    """Compiles a model in place, so that its names in checkpoints stay, and tells in one line where that fails.

    Copies made before, as of a moving average, and those made later are not compiled.

    Args:
        model: a module; compiled at its first call, and again where a call differs in more than sizes of tensors.
        options: of `torch.compile`; true for none, null or false to leave the model alone.

    Raises:
        UserError: the options are wrong, the model cannot be compiled, or no compiler is installed.
    """
    if options is None or options is False:
        yield
        return
    arguments: Any = {} if options is True else OmegaConf.to_container(OmegaConf.create(dict(options)))
    torch.compiler.reset()  # an earlier run of this process, in a sweep, has used up some of the allowed recompilations
    try:
        model.compile(**arguments)
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException  # slow to import

        is_compiled = model._compiled_call_impl is not None
        if is_compiled and not isinstance(error, TorchDynamoException):
            raise  # no fault of the compiler
        reason = next(line.strip() for line in f"{error}\n{type(error).__name__}".splitlines() if line.strip())
        raise UserError(f"compile={options} does not work here: {reason}; compile=null trains without") from error
