"""Forwards that stop at norms, so that many batches can go through a model norm by norm.

A forward is a stack of calls; only a thread can be left standing in the middle of one. Threads take turns, one at a
time, and the operators on tensors all run in the thread that waits for them: allocators and kernels keep memory for
every thread that computes, which would add up to more than the activations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from un.surgery.probing import copy_computed


class Visit(NamedTuple):
    """A forward that stands at a norm."""

    site: str
    value: Tensor
    pad_mask: Tensor | None = None


class _Operation(NamedTuple):
    """An operator for the other thread."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class _End(NamedTuple):
    """How a forward ended."""

    outputs: Any
    error: BaseException | None = None


class _Reply(NamedTuple):
    """What a forward goes on with."""

    result: Any = None
    error: BaseException | None = None


class _StopError(BaseException):
    """Ends a forward that is not needed any more; not an Exception, which models may catch."""


class PausedForward:
    """One forward, begun and continued by `advance`.

    Args:
        call: makes the forward; its modules call `visit` where it is to stop.
    """

    def __init__(self, call: Callable[[PausedForward], Any]) -> None:
        self.outputs: Any = None
        self.has_ended = False
        self._visited: set[str] = set()
        self._inbox, self._outbox = SimpleQueue[_Reply](), SimpleQueue[Any]()
        Thread(target=self._work, args=(call,), daemon=True).start()

    def advance(self) -> Visit | None:
        """Returns the next visit; None at the end, with the result in `outputs`.

        Raises:
            Exception: what the forward raised.
        """
        self._inbox.put(_Reply())
        while True:
            message = self._outbox.get()
            if isinstance(message, Visit):
                return message
            if isinstance(message, _End):
                self.has_ended = True
                if message.error is not None:
                    raise message.error
                self.outputs = message.outputs
                return None
            try:
                reply = _Reply(message.function(*message.args, **message.kwargs))
            except Exception as error:  # belongs to the forward, which may handle it
                reply = _Reply(error=error)
            del message
            self._inbox.put(reply)
            del reply

    def stop(self) -> None:
        """Gives the forward up and frees what it holds."""
        if not self.has_ended:
            self._inbox.put(_Reply(error=_StopError()))
            self._outbox.get()
            self.has_ended = True

    def visit(self, site: str, value: Tensor, pad_mask: Tensor | None = None, *, waits: bool = True) -> None:
        """Is called by the forward's modules: stops there until the forward is to go on, or only takes note.

        Raises:
            ValueError: the forward has been there.
        """
        if site in self._visited:
            raise ValueError(
                f"{site} is called more than once in a forward, so that no one map can be fitted: exclude it"
            )
        self._visited.add(site)
        if waits:
            self.post(Visit(site, value, pad_mask))

    def post(self, message: Visit | _Operation) -> Any:
        """Hands something to the waiting thread and returns its reply."""
        self._outbox.put(message)
        del message
        result, error = self._inbox.get()
        if error is not None:
            raise error
        return result

    def _work(self, call: Callable[[PausedForward], Any]) -> None:
        try:
            _, error = self._inbox.get()
            if error is not None:
                raise error
            with torch.no_grad(), _Elsewhere(self):
                end = _End(call(self))
        except BaseException as error:  # for the thread that waits
            end = _End(None, error)
        self._outbox.put(end)


class _Elsewhere(TorchFunctionMode):
    """Has every operator on tensors run by the thread that waits for a forward."""

    def __init__(self, forward: PausedForward) -> None:
        super().__init__()
        self.forward = forward

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Attributes cost nothing; autocast, which is a matter of the thread, may be the model's own.
        is_here = getattr(func, "__name__", "") == "__get__" or torch.is_autocast_enabled("cpu")
        is_here = is_here or torch.is_autocast_enabled("cuda")
        if is_here or not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        return self.forward.post(_Operation(func, args, kwargs))


def copy_structure(model: nn.Module, *shared: Any) -> nn.Module:
    """Returns a copy with the same parameters and buffers, so that forwards at the same time do not share other state.

    Args:
        model: any model.
        *shared: further objects that the copy holds itself, not as copies.
    """
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    memo: dict[int, Any] = {**copy_computed(model), **tensors, **{id(one): one for one in shared}}
    return copy.deepcopy(model, memo)
