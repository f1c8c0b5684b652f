"""What a trace finds: sources of channels, who reads them, and which stored tensors they meet.

Every channel of every tensor that comes out of a norm, of a linear layer or of a sum with one of these gets a number,
its code. Code 0 stands for everything else: inputs, constants, results of nonlinear operations, padding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Stored:
    """A parameter or buffer of the traced model; its elements are numbered from `base` over all stored tensors."""

    name: str
    tensor: Tensor
    base: int
    persistent: bool

    def holds(self, numbers: Tensor) -> Tensor:
        """For each number, whether it is of one of its elements."""
        return (numbers >= self.base) & (numbers < self.base + count_stored(self.tensor))


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


@dataclass(frozen=True)
class Padding:
    """A call of `F.pad` that puts a constant around channels.

    Attributes:
        module: name of the innermost module running.
        index: how many other calls of `F.pad` this call of the module made before.
        axis: of the channels.
        num_dims: of what is padded.
        codes: of each channel.
        value: the constant.
        reader: its description.
    """

    module: str
    index: int
    axis: int
    num_dims: int
    codes: Tensor
    value: float
    reader: str


@dataclass
class Graph:
    """Everything a trace found, in the order of execution.

    Attributes:
        sources: where codes come from.
        reads: readers that are not understood.
        meetings: readers that treat several codes alike.
        keys: readers to which one shift of all positions makes no difference, as softmax attention.
        paddings: calls of `F.pad` whose constant can be another one in the folded model.
        padding_counts: module -> how often it called `F.pad` in a forward.
        padded: readers that put zeros among the values.
        ordered: readers that need the order of values, as a maximum does.
        outputs: what comes out of each module; the reader is its name.
        raw_reads: name of a stored tensor -> a reader that is not a linear map.
        num_example_sources: how many of the sources are of the example itself.
        size: number of codes, 0 included.
        rounds: whether the model computed in less than float64.
        notes: what the trace could not see.
    """

    sources: list[LinearUse | NormCall | Sum] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    meetings: list[Meeting] = field(default_factory=list)
    keys: list[Read] = field(default_factory=list)
    paddings: list[Padding] = field(default_factory=list)
    padding_counts: dict[str, set[int]] = field(default_factory=dict)
    padded: list[Read] = field(default_factory=list)
    ordered: list[Read] = field(default_factory=list)
    outputs: list[Read] = field(default_factory=list)
    raw_reads: dict[str, str] = field(default_factory=dict)
    num_example_sources: int = 0
    size: int = 1
    rounds: bool = False
    notes: list[str] = field(default_factory=list)

    def copy_records(self) -> dict[str, Any]:
        """Copies of all lists and mappings, for `restore_records`."""
        return {name: copy.copy(value) for name, value in vars(self).items() if isinstance(value, list | dict)}

    def restore_records(self, records: Mapping[str, Any]) -> None:
        """Forgets everything since a copy was made; codes are not given out again."""
        vars(self).update(records)

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
