"""What folding, exporting and timing ask of a task, so that they need to know no task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class GraphPart:
    """The part of a model that an exported graph computes.

    Attributes:
        module: in evaluation mode, of positional tensors, with a tensor or a tuple of tensors as result.
        inputs: name -> example, in the order of the module's arguments.
        dynamic: input -> axis -> name of its size, for sizes that may change.
        outputs: names of the results.
        left_out: what else an inference of the task takes, empty for nothing.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    dynamic: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]
    left_out: str = ""


class InferenceTask(Protocol):
    """A task module whose trained model can be folded, exported and timed."""

    @property
    def inference_model(self) -> nn.Module:
        """The model that is tested."""

    def use_inference_model(self, model: nn.Module) -> None:
        """Tests this model from now on."""

    def make_fold_inputs(self, batch: Any) -> tuple[Any, ...] | dict[str, Any]:
        """Some examples of a batch, as `un.folding.fold_norms` wants them."""

    def predict(self, model: nn.Module, batch: Any) -> Any:
        """What a user of the model runs on a batch."""

    def cut_graph(self, model: nn.Module, batch: Any) -> GraphPart:
        """The part of a model that can be exported, with examples of a batch."""

    def use_graph(self, run: Callable[..., tuple[Tensor, ...]]) -> None:
        """Tests a graph from now on: `run` takes and returns what the module of `cut_graph` does."""
