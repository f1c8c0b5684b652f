"""The encoder without control flow that depends on values, as exporters need it. Shapes: B batch, T length, C width."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from un.translation.fairseq_library import SinusoidalPositionalEmbedding
from un.translation.transformer import Encoder, Transformer


class PositionTable(nn.Module):
    """Sinusoidal positions of a fixed largest length; fairseq's module computes longer ones when it meets them.

    Args:
        longest: most tokens of a sentence.
        width: C.
        padding_idx: token that has no position.
    """

    table: Tensor

    def __init__(self, longest: int, width: int, padding_idx: int) -> None:
        super().__init__()
        self.padding_idx = padding_idx
        table = SinusoidalPositionalEmbedding.get_embedding(longest + padding_idx + 1, width, padding_idx)
        self.register_buffer("table", table)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens (B, T) to (B, T, C)."""
        is_word = tokens.ne(self.padding_idx).long()
        return self.table[is_word.cumsum(dim=1) * is_word + self.padding_idx]


class EncoderGraph(nn.Module):
    """Computes what fairseq's encoder does of the tokens alone, always with a padding mask.

    Args:
        model: is copied; keeps the names of its encoder, `encoder.layers.0` and so on.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(model.encoder).eval()
        positions = self.encoder.embed_positions
        if isinstance(positions, SinusoidalPositionalEmbedding):
            weights = positions.weights
            table = PositionTable(self.encoder.max_source_positions, weights.shape[1], self.encoder.padding_idx)
            self.encoder.embed_positions = table.to(weights)

    def forward(self, source_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Maps tokens (B, T) to hidden states (T, B, C) and the padding mask (B, T), True where there is padding."""
        encoder = self.encoder
        padding_mask = source_tokens.eq(encoder.padding_idx)
        embedded, _ = encoder.forward_embedding(source_tokens)
        x = (embedded * (1 - padding_mask.unsqueeze(-1).type_as(embedded))).transpose(0, 1)
        for layer in encoder.layers:
            x = layer(x, encoder_padding_mask=padding_mask)
        return (x if encoder.layer_norm is None else encoder.layer_norm(x)), padding_mask


def replace_encoder(encoder: Encoder, run: Callable[..., tuple[Tensor, ...]]) -> None:
    """Lets an encoder compute its states with `run`, which takes and returns what an `EncoderGraph` does."""

    def forward(src_tokens: Tensor, *args: Any, **kwargs: Any) -> dict[str, list[Tensor]]:
        states, padding_mask = run(src_tokens)
        rest: dict[str, list[Tensor]] = {name: [] for name in ("encoder_states", "fc_results", "src_tokens")}
        lengths = (~padding_mask).sum(dim=1, keepdim=True)
        given = {"encoder_out": [states], "encoder_padding_mask": [padding_mask], "src_lengths": [lengths]}
        return {**rest, **given, "encoder_embedding": []}

    encoder.forward = forward  # type: ignore[method-assign]
