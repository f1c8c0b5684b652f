"""Activation checkpointing runs a forward twice; the second time must neither move the state nor change the numbers.

Both kinds of torch.utils.checkpoint and fairseq's recompute a block inside the backward. A norm therefore notes what
its training calls decided wherever they may be recomputed, and a call inside a backward looks its own decision up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from un.norms.core.compiling import hold

# Calls of one norm whose backward may be outstanding; bounds the memory of passes that never have one. Ours.
NOTED_CALLS = 64
# Largest difference of column sums, relative to the largest sum, between a call and its recomputation: kernels that add
# in no fixed order stay far below, other inputs far above. Ours.
RECALL_TOLERANCE = 1e-2

Decision = TypeVar("Decision")


class _Note(NamedTuple):
    shape: torch.Size
    sums: Tensor  # (C,), tells calls apart
    decision: Any


class CallNotes:
    """What the latest training calls of one norm decided."""

    def __init__(self) -> None:
        self._notes: deque[_Note] = deque(maxlen=NOTED_CALLS)
        self._used: deque[_Note] = deque(maxlen=NOTED_CALLS)  # recomputed once; a second backward may ask again

    def decide_once(self, rows: Tensor, decide: Callable[[], Decision]) -> Decision:
        """Returns `decide()`, or inside a backward what the call that is recomputed decided.

        What the forward computes from buffers that it moves must come from here: see `un.norms.core.compiling`, too.

        Args:
            rows: (R, C), the input of the call, by which it is recognised.
            decide: moves the norm's state.

        Raises:
            RuntimeError: inside a backward where no noted call had this input.
        """
        if torch.compiler.is_compiling():
            return hold(decide())
        if torch._C._current_graph_task_id() != -1:  # how torch.utils.checkpoint itself asks
            return self._recall(rows)
        decision = decide()
        if _may_be_recomputed():
            self._notes.append(_Note(rows.shape, _sum_columns(rows), decision))
        return decision

    def _recall(self, rows: Tensor) -> Any:
        sums = _sum_columns(rows)
        for notes in (self._notes, self._used):  # the latest first: backwards run in reverse
            candidates = [note for note in reversed(notes) if note.shape == rows.shape]
            if not candidates:
                continue
            differences = torch.stack([note.sums for note in candidates]).sub_(sums).abs_().nan_to_num_(nan=0)
            nearest, place = differences.amax(1).min(0)
            if nearest <= RECALL_TOLERANCE * sums.abs().nan_to_num(nan=0).amax():
                note = candidates[int(place)]
                if notes is self._notes:
                    _remove(notes, note)
                    self._used.append(note)
                return note.decision
        raise RuntimeError(
            f"a norm in training mode was called inside a backward, with an input {tuple(rows.shape)} that none of its "
            f"last {NOTED_CALLS} checkpointed calls had: activation checkpointing must recompute the same numbers"
        )


def _remove(notes: deque[_Note], unwanted: _Note) -> None:
    kept = [note for note in notes if note is not unwanted]
    notes.clear()
    notes.extend(kept)


def _sum_columns(rows: Tensor) -> Tensor:
    return rows.sum(0, dtype=torch.promote_types(rows.dtype, torch.float32))


def _may_be_recomputed() -> bool:
    """Whether the call runs without gradient (reentrant kind) or what it saves is intercepted (the other kind)."""
    return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
