"""What a trace finds: sources of channels, who reads them, and which stored tensors they meet.

Every channel of every tensor that comes out of a norm, of a linear layer or of a sum with one of these gets a number,
its code. Code 0 stands for everything else: inputs, constants, results of nonlinear operations, padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Stored:
    """A parameter or buffer of the traced model; its elements are numbered from `base` over all stored tensors."""

    name: str
    tensor: Tensor
    base: int
    persistent: bool


class Catalog:
    """Finds the stored tensor that a tensor is a view of, by its storage."""

    def __init__(self, model: nn.Module) -> None:
        self.by_storage: dict[int, Stored] = {}
        self.by_name: dict[str, Stored] = {}
        self.size = 0
        saved = {name for name, _ in model.named_parameters()} | set(model.state_dict())
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            stored = Stored(name, tensor, self.size, name in saved)
            self.by_name[name] = stored
            self.by_storage[identify_storage(tensor)] = stored
            self.size += count_stored(tensor)
        self._entries = list(self.by_name.values())
        self._bases = torch.tensor([entry.base for entry in self._entries])

    def find(self, tensor: Tensor) -> Stored | None:
        """The stored tensor whose memory this tensor shows, with any shape and strides."""
        stored = self.by_storage.get(identify_storage(tensor))
        return stored if stored is not None and stored.tensor.dtype == tensor.dtype else None

    def number(self, tensor: Tensor) -> Tensor | None:
        """The number of each element of a view of a stored tensor, in the view's shape."""
        stored = self.find(tensor)
        if stored is None:
            return None
        numbers = torch.arange(stored.base, stored.base + count_stored(stored.tensor), device=tensor.device)
        return numbers.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def list_stored(self, numbers: Tensor) -> list[Stored]:
        """The stored tensors to which numbered elements belong; -1 belongs to none."""
        known = numbers[numbers >= 0].cpu()
        positions = torch.searchsorted(self._bases, known, right=True) - 1
        return [self._entries[position] for position in torch.unique(positions).tolist()]


@dataclass(frozen=True)
class Place:
    """A view of one stored tensor, by name and geometry."""

    name: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def view(self, memory: Tensor) -> Tensor:
        """The same view of another memory of the stored tensor's layout."""
        return memory.as_strided(self.size, self.stride, self.offset)


@dataclass
class LinearUse:
    """One call of a linear map with a stored weight.

    Attributes:
        weight: (O, K) or, for a convolution, (O, K / groups, ...).
        inputs: code of each of the K input channels; None where nothing about the input is known.
        bias: number of the stored element behind each of the O biases, -1 where there is none; None without bias.
        module: the innermost module running.
        takes_bias: whether that module owns the weight, has no bias and adds one if it is given one.
        groups: of a convolution.
        base: code of the first output channel.
        size: O.
    """

    weight: Place
    inputs: Tensor | None
    bias: Tensor | None
    module: str
    takes_bias: bool
    groups: int
    base: int
    size: int

    @property
    def outputs(self) -> Tensor:
        """Codes of the output channels."""
        return torch.arange(self.base, self.base + self.size)


@dataclass
class NormCall:
    """One call of a norm: output code base + i is channel `channels[i]` of what has code `inputs[i]`.

    Attributes:
        num_dims: axes of the input.
        more_arguments: whether the norm got more than the input.
    """

    site: int
    inputs: Tensor
    channels: Tensor
    base: int
    num_dims: int
    more_arguments: bool

    @property
    def outputs(self) -> Tensor:
        """Codes of the output."""
        return torch.arange(self.base, self.base + len(self.inputs))


@dataclass
class Sum:
    """One addition: output code base + i is the sum of what has the codes left[i] and right[i]."""

    left: Tensor
    right: Tensor
    module: str
    base: int

    @property
    def outputs(self) -> Tensor:
        """Codes of the output."""
        return torch.arange(self.base, self.base + len(self.left))


@dataclass(frozen=True)
class Read:
    """Codes read by something, and its description."""

    codes: Tensor
    reader: str


@dataclass(frozen=True)
class Meeting:
    """Pairs of codes that one channel of a reader sees at different positions."""

    left: Tensor
    right: Tensor
    reader: str


@dataclass
class Graph:
    """Everything a trace found, in the order of execution.

    Attributes:
        sources: where codes come from.
        reads: readers that are not understood.
        meetings: readers that treat several codes alike.
        padded: readers that pad with zeros.
        ordered: readers that need the order of values, as a maximum does.
        raw_reads: name of a stored tensor -> a reader that is not a linear map.
        size: number of codes, 0 included.
        rounds: whether the model computed in less than float64.
    """

    sources: list[LinearUse | NormCall | Sum] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    meetings: list[Meeting] = field(default_factory=list)
    padded: list[Read] = field(default_factory=list)
    ordered: list[Read] = field(default_factory=list)
    raw_reads: dict[str, str] = field(default_factory=dict)
    size: int = 1
    rounds: bool = False

    def allocate(self, count: int) -> int:
        """Reserves codes and returns the first."""
        base, self.size = self.size, self.size + count
        return base


def identify_storage(tensor: Tensor) -> int:
    """A number that two tensors share if they show the same memory."""
    return tensor.untyped_storage()._cdata


def count_stored(tensor: Tensor) -> int:
    """Elements in the memory behind a tensor."""
    return tensor.untyped_storage().nbytes() // tensor.element_size()
