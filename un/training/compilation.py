"""torch.compile in a run: `compile=true`, with options `compile={mode: max-autotune}`, or `compile=norms`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from omegaconf import OmegaConf

from un.command.errors import UserError
from un.norms.core.compilation import compile_norms

NORMS = "norms"


@contextlib.contextmanager
def compile_in_training(model: Any, options: bool | str | Mapping[str, Any] | None) -> Iterator[None]:
    """Compiles a model in place, so that its names in checkpoints stay, and tells in one line where that fails.

    Copies made before, as of a moving average, and those made later are not compiled.

    Args:
        model: a module; compiled at its first call, and again where a call differs in more than sizes of tensors.
        options: of `torch.compile`; true for none, "norms" to compile only what norms do in a training step, null or
            false to leave the model alone.

    Raises:
        UserError: the options are wrong, the model cannot be compiled, or no compiler is installed.
    """
    if options is None or options is False:
        yield
        return
    arguments: Any = OmegaConf.to_container(OmegaConf.create(dict(options))) if isinstance(options, Mapping) else {}
    torch.compiler.reset()  # an earlier run of this process, in a sweep, has used up some of the allowed recompilations
    try:
        if options == NORMS:
            compile_norms(model)
        else:
            model.compile(**arguments)
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException  # slow to import

        is_compiled = options == NORMS or model._compiled_call_impl is not None
        if is_compiled and not isinstance(error, TorchDynamoException):
            raise  # no fault of the compiler
        reason = next(line.strip() for line in f"{error}\n{type(error).__name__}".splitlines() if line.strip())
        raise UserError(f"compile={options} does not work here: {reason}; compile=null trains without") from error
