"""What a trace finds: sources of channels, what reads them, and which stored tensors they meet.

Every channel of every tensor that comes out of a norm, of a linear layer or of a sum with one of these gets a number,
its code. Code 0 stands for everything else: inputs, constants, results of nonlinear operations, padding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn

from un.folding.codes import count_stored


@dataclass(frozen=True, eq=False)
class Stored:
    """A parameter or buffer of the traced model; its elements are numbered from `base` over all stored tensors."""

    name: str
    tensor: Tensor
    base: int
    persistent: bool

    @property
    def memory(self) -> Tensor:
        """All elements behind the tensor, in one row."""
        return self.tensor.as_strided((count_stored(self.tensor),), (1,), 0)

    def holds(self, numbers: Tensor) -> Tensor:
        """For each number, whether it is of one of its elements."""
        return (numbers >= self.base) & (numbers < self.base + count_stored(self.tensor))


class Catalog:
    """Finds the stored tensor that a tensor is a view of, by its storage."""

    def __init__(self, model: nn.Module) -> None:
        self._by_storage: dict[UntypedStorage, Stored] = {}
        self._entries: list[Stored] = []
        size = 0
        saved = {name for name, _ in model.named_parameters()} | set(model.state_dict())
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            stored = Stored(name, tensor, size, name in saved)
            self._entries.append(stored)
            self._by_storage[tensor.untyped_storage()] = stored
            size += count_stored(tensor)
        self._bases = torch.tensor([stored.base for stored in self._entries])

    def find(self, tensor: Tensor) -> Stored | None:
        """Returns the stored tensor whose memory this tensor shows, with any shape and strides."""
        stored = self._by_storage.get(tensor.untyped_storage())
        return stored if stored is not None and stored.tensor.dtype == tensor.dtype else None

    def number(self, tensor: Tensor) -> Tensor | None:
        """Returns the number of each element of a view of a stored tensor, in the view's shape."""
        stored = self.find(tensor)
        if stored is None:
            return None
        numbers = torch.arange(stored.base, stored.base + count_stored(stored.tensor), device=tensor.device)
        return numbers.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def list_stored(self, numbers: Tensor) -> tuple[Stored, ...]:
        """Returns the stored tensors to which numbered elements belong; -1 belongs to none."""
        known = numbers[numbers >= 0].cpu()
        positions = torch.searchsorted(self._bases, known, right=True) - 1
        return tuple(self._entries[position] for position in torch.unique(positions).tolist())


@dataclass(frozen=True, eq=False)
class Source:
    """What gives channels `size` new codes, from `base` on."""

    base: int
    size: int

    @property
    def outputs(self) -> Tensor:
        """Codes of the output."""
        return torch.arange(self.base, self.base + self.size)


@dataclass(frozen=True, eq=False)
class LinearUse(Source):
    """One call of a linear map with a stored weight."""

    stored: Stored  # the tensor that the weight is a view of
    weight: Tensor  # (O, K) or, for a convolution, (O, K / groups, ...)
    inputs: Tensor | None  # code of each of the K input channels; None where nothing about the input is known
    bias: Tensor | None  # number of the stored element behind each of the O biases, or -1; None without bias
    biases: tuple[Stored, ...]  # to which these elements belong
    module: str  # the innermost one running
    takes_bias: bool  # whether that module owns the weight, has no bias and adds one if it is given one
    groups: int


@dataclass(frozen=True, eq=False)
class NormCall(Source):
    """One call of a norm: output code base + i is channel `channels[i]` of what has code `inputs[i]`."""

    site: int  # number of the norm
    inputs: Tensor
    channels: Tensor
    num_dims: int
    more_arguments: bool  # whether the norm got more than the input


@dataclass(frozen=True, eq=False)
class Sum(Source):
    """One addition: output code base + i is the sum of what has the codes left[i] and right[i]."""

    left: Tensor
    right: Tensor
    module: str


class Need(Enum):
    """What a reader asks of values x = scale * h + shift, where it gets h."""

    ITSELF = "x: it is not understood"
    SAME_SCALE = "scale 1: one shift of all positions makes no difference, as to softmax attention"
    NO_SHIFT = "shift 0: it puts zeros among the values"
    POSITIVE_SCALE = "scale > 0: it compares values, as a maximum does"


@dataclass(frozen=True)
class Read:
    """Codes read by something, its description, and what it needs."""

    codes: Tensor
    reader: str
    need: Need = Need.ITSELF


@dataclass(frozen=True)
class Meeting:
    """Pairs of codes that one channel of a reader sees at different positions."""

    left: Tensor
    right: Tensor
    reader: str


@dataclass(frozen=True)
class Padding:
    """A call of `F.pad` that puts a constant around channels; it can be another one in the folded model."""

    module: str  # the innermost one running
    index: int  # how many other calls of `F.pad` this call of the module made before
    axis: int  # of the channels
    num_dims: int
    codes: Tensor  # of each channel
    value: float
    reader: str


@dataclass
class Graph:
    """Everything a trace found, in the order of execution."""

    sources: list[LinearUse | NormCall | Sum] = field(default_factory=list)
    size: int = 1  # number of codes, 0 included
    reads: list[Read] = field(default_factory=list)  # by others than norms, sums and linear maps
    meetings: list[Meeting] = field(default_factory=list)
    paddings: list[Padding] = field(default_factory=list)
    padding_counts: dict[str, set[int]] = field(default_factory=dict)  # module -> calls of `F.pad` in a forward
    raw_reads: dict[str, str] = field(default_factory=dict)  # stored tensor -> a reader that is not a linear map
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)  # module -> codes of what came out, call by call
    boundaries: dict[str, list[Tensor]] = field(default_factory=dict)  # module -> codes of what went in or came out
    reached: set[str] = field(default_factory=set)  # names of the modules that ran
    rounds: bool = False  # whether the model computed in less than float64
    notes: list[str] = field(default_factory=list)  # what the trace could not see

    def copy_records(self) -> dict[str, Any]:
        """Copies all collections, for `restore_records`."""
        return {name: copy.copy(value) for name, value in vars(self).items() if isinstance(value, list | dict | set)}

    def restore_records(self, records: Mapping[str, Any]) -> None:
        """Forgets what was recorded since a copy was made; codes are not given out again."""
        vars(self).update(records)

    def allocate(self, count: int) -> int:
        """Reserves codes and returns the first."""
        base, self.size = self.size, self.size + count
        return base
