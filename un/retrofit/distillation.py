"""Training a retrofitted model on: its original teaches it, and the original norms may leave one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from un.norms.core.base import Norm


class Distillation:
    """What the original model adds to the training loss of the one without its norms.

    Its hooks on the new norms act in training mode alone, so that validation always measures what is left at the end.

    Args:
        original: the model with its norms; frozen here, and never part of the other one.
        model: the retrofitted one.
        sites: dotted names of the norms in the order of the forward, the same in both.
        logits_weight: of `compare`.
        hidden_weight: of the squared error of the norms' outputs, relative to the variance of the original's, averaged
            over the norms; padding stays out where the norms are told.
        every: steps after which one norm after the other leaves, as in arXiv 2409.13710; 0 for all at once. Until then
            the original norm, frozen, stays in its place, while its successor's statistics follow the same inputs.
        read_step: gives the number of the training step.
        compare: a loss of the model's outputs and the original's; by default KL(original, model) of the predictions.

    Raises:
        ValueError: a weight or `every` is below 0.
    """

    def __init__(
        self,
        original: nn.Module,
        model: nn.Module,
        sites: Sequence[str],
        *,
        logits_weight: float = 1.0,
        hidden_weight: float = 0.0,
        every: int = 0,
        read_step: Callable[[], int] = lambda: 0,
        compare: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        for name, value in (("logits_weight", logits_weight), ("hidden_weight", hidden_weight), ("every", every)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.original = original.eval().requires_grad_(False)
        self.logits_weight, self.hidden_weight = logits_weight, hidden_weight
        self.compare = compare or measure_divergence
        self._given: dict[str, tuple[Tensor, Tensor | None]] = {}  # by the model's norms in the latest forward
        self._errors: list[Tensor] = []
        for number, name in enumerate(sites, 1):
            new, old = model.get_submodule(name), original.get_submodule(name)
            if every:
                _keep_until(new, old, number * every, read_step)
            if hidden_weight:
                self._compare(name, new, old)

    def __call__(self, logits: Tensor, call: Callable[[nn.Module], Tensor]) -> Tensor | None:
        """Returns what is added to the mean loss of a batch; None for nothing.

        Args:
            logits: what `compare` takes, of the model's forward in training; logits (..., V) of what counts in the
                loss alone.
            call: gives the same of another model for the same batch.
        """
        if not (self.logits_weight or self.hidden_weight):
            return None
        with torch.no_grad():
            expected = call(self.original.to(logits.device))
        term = logits.new_zeros(())
        if self.logits_weight:
            term = term + self.logits_weight * self.compare(logits, expected)
        if self.hidden_weight:
            term = term + self.hidden_weight * torch.stack(self._errors).mean()
        self._given, self._errors = {}, []
        return term

    def _compare(self, name: str, new: nn.Module, old: nn.Module) -> None:
        """Keeps what a new norm gives in training, and compares it with what the original then gives."""
        told = next((module for module in new.modules() if isinstance(module, Norm)), None)

        def keep(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
            if module.training:
                self._given[name] = (y, None if told is None else told.shared_pad_mask)

        @torch.enable_grad()  # the forward of the original is without
        def compare(module: nn.Module, args: tuple[Any, ...], expected: Tensor) -> None:
            if name in self._given:  # otherwise this is the original in the place of its successor
                y, pad_mask = self._given[name]
                if pad_mask is not None:
                    y, expected = y[~pad_mask], expected[~pad_mask]
                self._errors.append(_measure_error(y, expected))

        new.register_forward_hook(keep)
        old.register_forward_hook(compare)


def measure_divergence(logits: Tensor, expected: Tensor) -> Tensor:
    """Returns KL(expected, logits) of predictions in nats, averaged over all axes but the last."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    predicted, target = (F.log_softmax(value.to(dtype).flatten(0, -2), -1) for value in (logits, expected))
    return F.kl_div(predicted, target, reduction="batchmean", log_target=True)


def _measure_error(y: Tensor, expected: Tensor) -> Tensor:
    """Returns the mean squared error relative to the variance of what is expected, without gradient to the latter."""
    dtype = torch.promote_types(y.dtype, torch.float32)
    y, expected = y.to(dtype), expected.detach().to(dtype)
    return F.mse_loss(y, expected) / expected.var().clamp_min(torch.finfo(dtype).tiny)


def _keep_until(new: nn.Module, old: nn.Module, step: int, read_step: Callable[[], int]) -> None:
    """Has a norm give what the original norm gives, in training up to a step."""

    def replace(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor | None:
        return old.to(y.device)(args[0]).to(y.dtype) if module.training and read_step() < step else None

    new.register_forward_hook(replace)
