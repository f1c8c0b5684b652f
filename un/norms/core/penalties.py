"""What norms add to the training loss, summed over a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from un.norms.core.base import Norm


def sum_penalties(model: nn.Module) -> Tensor | None:
    """Returns the sum of the penalties of a model's norms, a scalar with gradient; None where none has one.

    The tasks call it once after each forward in training. It takes what the norms keep, so that a norm which the next
    forward leaves out adds nothing then. Norms in evaluation mode have no penalty.
    """
    norms = [module for module in model.modules() if isinstance(module, Norm) and module.training]
    terms = [term for norm in norms if (term := norm.penalty()) is not None]
    for norm in norms:
        norm.notes.penalty = None
    return torch.stack([term.to(terms[0]) for term in terms]).sum() if terms else None
