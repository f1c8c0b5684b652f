"""What evaluating, folding, exporting and timing ask of a task and its data, so that they need to know no task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from torch import Tensor, nn
from torch.export import Dim


@dataclass(frozen=True)
class GraphPart:
    """The part of a model that an exported graph computes."""

    module: nn.Module  # in evaluation mode, of positional tensors, with a tensor or a tuple of tensors as result
    inputs: Mapping[str, Tensor]  # name -> example, in the order of the module's arguments
    dynamic: Mapping[str, Mapping[int, str]]  # input -> axis -> name of its size, for sizes that may change
    outputs: tuple[str, ...]  # names of the results
    left_out: str = ""  # what else an inference of the task takes, empty for nothing

    @property
    def dynamic_shapes(self) -> tuple[dict[int, Dim], ...]:
        """For each input, the axes whose size may change; sizes of the same name are the same."""
        sizes = {name: Dim(name) for axes in self.dynamic.values() for name in axes.values()}
        return tuple({axis: sizes[name] for axis, name in self.dynamic.get(key, {}).items()} for key in self.inputs)


class InferenceTask(Protocol):
    """A task module whose trained model can be folded, exported and timed."""

    @property
    def inference_model(self) -> nn.Module:
        """The model that is tested."""

    def use_inference_model(self, model: nn.Module) -> None:
        """Tests this model from now on."""

    def make_fold_inputs(self, batch: Any) -> tuple[Any, ...] | dict[str, Any]:
        """Returns some examples of a batch, as `un.folding.fold_norms` wants them."""

    def call_model(self, model: nn.Module, batch: Any) -> Any:
        """Returns what a model computes of a batch as it is trained, translations with their targets as input."""

    def measure_losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Returns the cross-entropy (B,) of each example in nats, of a translation per target token."""

    def predict(self, model: nn.Module, batch: Any) -> Any:
        """Returns what a user of the model runs it for."""

    def cut_graph(self, model: nn.Module, batch: Any) -> GraphPart:
        """Returns the part of a model that can be exported, with examples of a batch."""

    def use_graph(self, run: Callable[..., tuple[Tensor, ...]]) -> None:
        """Tests a graph from now on: `run` takes and returns what the module of `cut_graph` does."""


class Preprocessor(Protocol):
    """What lies between data and the numbers of a model: a vocabulary, or class names and normalisation.

    Weights mean nothing without it, so a run keeps it beside them.
    """

    def save(self, folder: Path) -> None:
        """Writes its files into an empty folder."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote; a ValueError says what is missing or damaged."""

    def explain_difference(self, other: Self) -> str:
        """Describes how this one differs from the other; empty if both turn data into the same numbers."""

    def check_initial_weights(self, trained: Self) -> None:
        """Raises a ValueError where weights that were trained with another one are no start for this one."""


class Prediction(Protocol):
    """Between what a user has and what a model takes and gives: sentences or images, and their results."""

    def read(self, source: str) -> list[Any]:
        """Returns the inputs that an argument of a command line names; a ValueError says why there are none."""

    def make_batches(self, inputs: Sequence[Any]) -> Iterator[tuple[Sequence[int], Any]]:
        """Yields the places of some inputs, and their batch in the form of the loaders'; empty inputs are in none."""

    def interpret(self, outputs: Any, **options: Any) -> list[Any]:
        """Returns a result for each input of a batch, from what `InferenceTask.predict` gave."""

    def write(self, inputs: Sequence[Any], results: Sequence[Any]) -> str:
        """Returns results as text for a file."""


class InferenceData(Protocol):
    """A data module that works with the preprocessor of a finished run."""

    preprocessor_class: type[Preprocessor]  # what `preprocessor` is
    fixed_arguments: tuple[str, ...]  # dotted names of arguments that the preprocessor decides once there is one

    @property
    def preprocessor(self) -> Preprocessor:
        """The one in use; made from the training data where none was given."""

    def use_preprocessor(self, preprocessor: Preprocessor) -> None:
        """Works with this one from now on; splits are read when they are first asked for, each by itself."""

    def make_example_batch(self, seed: int) -> Any:
        """Returns a small batch in the form of the loaders', made without data, the same for the same seed."""

    def make_prediction(self) -> Prediction:
        """Returns what new inputs and their results go through."""
