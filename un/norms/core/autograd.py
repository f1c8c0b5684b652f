"""What protects a norm's state, which every training call moves, from what torch does beyond a plain step.

- torch.compile computes a value a second time in the backward where it believes that this is cheaper than saving it. A
  value that was computed from a buffer is another one by then, and the gradients are wrong without a word (torch 2.14,
  default settings, backends aot_eager and inductor). `hold` prevents it.
- Activation checkpointing (both kinds of torch.utils.checkpoint, and fairseq's) runs a forward again inside the
  backward. `CallNotes` gives such a call the decision of the first one, and the state stays.
- In training there is no second derivative, and `refuse_second_derivatives` says so. Forward-mode differentiation and
  torch.func transforms are refused by torch itself, as are batched gradients where a backward moves state. In
  evaluation norms are ordinary operations of torch, and everything works.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Values = TypeVar("Values")

# Calls of one norm whose backward may be outstanding; bounds the memory of passes that never have one. Ours.
NOTED_CALLS = 64
# Largest difference of column sums, relative to the largest sum, between a call and its recomputation: kernels that add
# in no fixed order stay far below, other inputs far above. Ours.
RECALL_TOLERANCE = 1e-2

# Operators of this package. A call of `torch.library.custom_op` takes three times as long.
LIBRARY = torch.library.Library("un", "DEF")
LIBRARY.define("hold(Tensor[] values) -> Tensor[]", tags=(torch.Tag.pt2_compliant_tag,))
LIBRARY.impl("hold", lambda values: [value.clone() for value in values], "CompositeExplicitAutograd")


def hold(values: Values) -> Values:
    """Returns the values, which under torch.compile are never computed a second time.

    They pass through one operator that the compiler cannot look into, and such operators it does not run twice. At
    least one of the values must be needed by the forward's output, or the whole operator may move to the backward.

    Args:
        values: a tensor or any nest of tuples, named ones too, with tensors in it; constants to autograd.
    """
    if not torch.compiler.is_compiling():
        return values
    leaves, structure = pytree.tree_flatten(values)
    held = iter(torch.ops.un.hold([leaf for leaf in leaves if isinstance(leaf, Tensor)]))
    return pytree.tree_unflatten([next(held) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)


def is_inside_backward() -> bool:
    """Tells whether a backward is running, which recomputes this call; torch.utils.checkpoint asks the same way."""
    return torch._C._current_graph_task_id() != -1


def may_be_recomputed() -> bool:
    """Tells whether a call has no gradient (reentrant checkpointing), or what it saves is intercepted (the other)."""
    return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


class _Note(NamedTuple):
    shape: torch.Size
    sums: Tensor  # (C,), tells calls apart
    decision: Any


class CallNotes:
    """What the latest training calls of one norm decided, wherever they may be recomputed."""

    def __init__(self) -> None:
        self._notes: deque[_Note] = deque(maxlen=NOTED_CALLS)
        self._used: deque[_Note] = deque(maxlen=NOTED_CALLS)  # recomputed once; a second backward may ask again

    def decide_once(self, rows: Tensor, decide: Callable[[], Values]) -> Values:
        """Returns `decide()`, or inside a backward what the call that is recomputed decided.

        All that the forward computes from buffers that it moves must come from here.

        Args:
            rows: (R, C), the input of the call, by which it is recognised.
            decide: moves the norm's state.

        Raises:
            RuntimeError: inside a backward where no noted call had this input.
        """
        if torch.compiler.is_compiling():
            return hold(decide())
        if is_inside_backward():
            return self._recall(rows)
        decision = decide()
        if may_be_recomputed():
            self._notes.append(_Note(rows.shape, _sum_columns(rows), decision))
        return decision

    def _recall(self, rows: Tensor) -> Any:
        sums = _sum_columns(rows)
        for notes in (self._notes, self._used):
            # The latest first: backwards run in reverse.
            places = [place for place in reversed(range(len(notes))) if notes[place].shape == rows.shape]
            if not places:
                continue
            differences = torch.stack([notes[place].sums for place in places]).sub_(sums).abs_().nan_to_num_(nan=0)
            nearest, index = differences.amax(1).min(0)
            if nearest <= RECALL_TOLERANCE * sums.abs().nan_to_num(nan=0).amax():
                note = notes[places[int(index)]]
                if notes is self._notes:
                    del notes[places[int(index)]]
                    self._used.append(note)
                return note.decision
        raise RuntimeError(
            f"a norm in training mode was called inside a backward, with an input {tuple(rows.shape)} that none of its "
            f"last {NOTED_CALLS} checkpointed calls had: activation checkpointing must recompute the same numbers"
        )


def _sum_columns(rows: Tensor) -> Tensor:
    return rows.sum(0, dtype=torch.promote_types(rows.dtype, torch.float32))


def refuse_second_derivatives(*gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """Returns the gradients; where they are part of a graph (create_graph=True), differentiating them is refused.

    With `torch.autograd.function.once_differentiable`, a constant upstream gradient would make these gradients
    constants too, and a second derivative would lack the norm's part without a word.
    """
    if not torch.is_grad_enabled():
        return gradients
    present = [gradient.detach().requires_grad_() for gradient in gradients if gradient is not None]
    refusing = iter(_Refusal.apply(*present))
    return tuple(None if gradient is None else next(refusing) for gradient in gradients)


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient.clone() for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError("a norm in training mode has no second derivative; call eval() on it first")
