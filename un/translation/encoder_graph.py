"""The encoder alone, as exporters need it. Shapes: B batch, T length, C width."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from un.translation.transformer import Encoder, Transformer, pack_states


class EncoderGraph(nn.Module):
    """Computes what fairseq's encoder makes of the tokens alone, always with a padding mask.

    Args:
        model: Is copied; the names of its encoder stay, `encoder.layers.0` and so on.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(model.encoder).eval()

    def forward(self, source_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Maps tokens (B, T) to hidden states (T, B, C) and the padding mask (B, T), True where there is padding."""
        return self.encoder.encode(source_tokens)


def replace_encoder(encoder: Encoder, run: Callable[..., tuple[Tensor, ...]]) -> None:
    """Lets an encoder compute its states with `run`, which takes and returns what an `EncoderGraph` does."""

    def forward(src_tokens: Tensor, *args: Any, **kwargs: Any) -> dict[str, list[Tensor]]:
        states, padding_mask = run(src_tokens)
        return pack_states(states, padding_mask)

    encoder.forward = forward  # type: ignore[method-assign]
