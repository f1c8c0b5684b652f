"""fairseq's Transformer with padding masks for its norms. Shapes: B batch, T length, C width.

The norms of an encoder or decoder see (T, B, C), but `layernorm_embedding` sees (B, T, C). The masks are set in the
methods that training and beam search share: beam search calls neither the model nor, through hooks, its halves.

Where fairseq's control flow depends on the values of tensors (is there padding? is the table of positions long
enough?), a compiler and an exporter cannot follow: for them, masks are always given and sizes come from shapes.
"""

import contextlib
import difflib
from argparse import Namespace
from collections.abc import Collection, Iterator
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from un.surgery import share_pad_mask
from un.translation.fairseq_library import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_REGISTRY,
    Dictionary,
    SinusoidalPositionalEmbedding,
    TransformerConfig,
    TransformerDecoderBase,
    TransformerEncoderBase,
    TransformerModel,
)

NUM_SUGGESTIONS = 3
SHARED_OPTIONS = frozenset(field.name for field in fields(TransformerConfig().encoder))  # of encoder and decoder


class Positions(SinusoidalPositionalEmbedding):
    """fairseq's sinusoidal positions, looked up without asking a tensor for its size."""

    def forward(self, input: Tensor, incremental_state: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """Maps tokens (B, T) to (B, T, C), with incremental state the last one to (B, 1, C).

        For a sentence longer than the table, fairseq extends it; under a compiler it is an error.
        """
        is_long = not torch.compiler.is_compiling() and input.shape[1] + self.padding_idx >= len(self.weights)
        if is_long or incremental_state is not None:
            return super().forward(input, incremental_state, *args, **kwargs)
        is_word = input.ne(self.padding_idx).long()
        return self.weights[is_word.cumsum(dim=1) * is_word + self.padding_idx]


class Encoder(TransformerEncoderBase):
    """fairseq's encoder; its norms get the padding mask of the source if `masks_norms` is set."""

    masks_norms = False

    def forward(self, src_tokens: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Encodes src_tokens (B, T); arguments and result as in fairseq."""
        if torch.compiler.is_compiling():
            return pack_states(*self.encode(src_tokens))
        with _mask_norms(self, src_tokens):
            return super().forward(src_tokens, *args, **kwargs)

    def encode(self, src_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Maps tokens (B, T) to hidden states (T, B, C) and the padding mask (B, T), True where there is padding.

        Without control flow that depends on values: layers always get the mask.
        """
        padding_mask = src_tokens.eq(self.padding_idx)
        with _mask_norms(self, src_tokens):
            embedded, _ = self.forward_embedding(src_tokens)
            x = (embedded * (1 - padding_mask.unsqueeze(-1).type_as(embedded))).transpose(0, 1)
            for layer in self.layers:
                x = layer(x, encoder_padding_mask=padding_mask)
            return (x if self.layer_norm is None else self.layer_norm(x)), padding_mask


class Decoder(TransformerDecoderBase):
    """fairseq's decoder; its norms get the padding mask of its input if `masks_norms` is set."""

    masks_norms = False

    @property
    def cross_self_attention(self) -> bool:
        """Is read in one place only, where true means to pass the padding mask on without looking for padding."""
        return self._cross_self_attention or torch.compiler.is_compiling()

    @cross_self_attention.setter
    def cross_self_attention(self, value: bool) -> None:
        self._cross_self_attention = value

    def buffered_future_mask(self, tensor: Tensor) -> Tensor:
        """Returns the causal mask (T, T) for tensor (T, B, C); a buffer would be recompiled whenever it grows."""
        if not torch.compiler.is_compiling():
            with torch.inference_mode(False):  # otherwise training could not use a mask that validation has made
                return super().buffered_future_mask(tensor)
        length = len(tensor)
        return tensor.new_full((length, length), -torch.inf).triu(1)

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, Any] | None,
        incremental_state: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Maps prev_output_tokens (B, T) to features (B, T, C), with incremental state (B, 1, C) of the last one."""
        seen = prev_output_tokens if incremental_state is None else prev_output_tokens[:, -1:]
        with _mask_norms(self, seen):
            return super().extract_features(prev_output_tokens, encoder_out, incremental_state, *args, **kwargs)


class Transformer(TransformerModel):
    """fairseq's encoder-decoder, of which `un.surgery` may replace every norm."""

    encoder: Encoder
    decoder: Decoder

    @classmethod
    def build_encoder(cls, args: Any, src_dict: Dictionary, embed_tokens: nn.Embedding) -> Encoder:
        encoder = Encoder(TransformerConfig.from_namespace(args), src_dict, embed_tokens)
        encoder.embed_positions = _look_up(encoder.embed_positions)
        return encoder

    @classmethod
    def build_decoder(cls, args: Any, tgt_dict: Dictionary, embed_tokens: nn.Embedding) -> Decoder:
        config = TransformerConfig.from_namespace(args)
        decoder = Decoder(config, tgt_dict, embed_tokens, no_encoder_attn=config.no_cross_attention)
        decoder.embed_positions = _look_up(decoder.embed_positions)
        return decoder

    def use_pad_mask(self, enabled: bool) -> None:
        """Sets whether padding masks reach the norms, including norms that are replaced later; at first they do not."""
        self.encoder.masks_norms = self.decoder.masks_norms = enabled


def build_transformer(
    source_dictionary: Dictionary, target_dictionary: Dictionary, arch: str = "transformer_iwslt_de_en", **options: Any
) -> Transformer:
    """Builds a Transformer with LayerNorm.

    Args:
        source_dictionary: Dictionary of the source.
        target_dictionary: Dictionary of the target; equal to the other if both sides share their embeddings.
        arch: fairseq's name, one of `transformer_*`; decides what `options` leave open.
        **options: Those of fairseq, with underscores: `encoder_embed_dim`, `dropout` and so on. A `decoder_` option
            that is not given follows its `encoder_` twin if that is given.

    Raises:
        ValueError: The arch or an option is unknown, or fairseq refuses a value.
    """
    _check_name("model.arch", arch, [name for name, model in ARCH_MODEL_REGISTRY.items() if model is TransformerModel])
    defaults = list_defaults()
    for name, value in options.items():
        _check_name("model option", name, defaults)
        _check_kind(name, value, defaults[name])
    for name in SHARED_OPTIONS:
        if f"encoder_{name}" in options:
            options.setdefault(f"decoder_{name}", options[f"encoder_{name}"])
    if options.get("adaptive_softmax_cutoff") is not None:
        raise ValueError("model.adaptive_softmax_cutoff is for a loss that is not offered here: leave it out")
    arguments = Namespace(**options)
    dictionaries = SimpleNamespace(source_dictionary=source_dictionary, target_dictionary=target_dictionary)
    try:
        ARCH_CONFIG_REGISTRY[arch](arguments)
        return Transformer.build_model(arguments, dictionaries)
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        shown = ", ".join(f"{name}={value!r}" for name, value in sorted(options.items()))
        raise ValueError(f"{arch} cannot be built with {shown}: {error}") from error


def list_defaults() -> dict[str, Any]:
    """Returns the options of fairseq's Transformer with their values where neither arch nor user sets them."""
    config = TransformerConfig()
    groups = ("encoder", "decoder", "quant_noise")
    parts = {"": config, **{f"{group}_": getattr(config, group) for group in groups}}
    return {
        prefix + field.name: getattr(part, field.name)
        for prefix, part in parts.items()
        for field in fields(part)
        if field.name not in (*groups, "_name")
    }


def pack_states(states: Tensor, padding_mask: Tensor) -> dict[str, list[Tensor]]:
    """Returns states (T, B, C) and padding mask (B, T) as fairseq's decoder and beam search take them."""
    lengths = (~padding_mask).sum(dim=1, keepdim=True)
    given = {"encoder_out": [states], "encoder_padding_mask": [padding_mask], "src_lengths": [lengths]}
    return {**given, "encoder_embedding": [], "encoder_states": [], "fc_results": [], "src_tokens": []}


def _look_up(positions: nn.Module | None) -> nn.Module | None:
    """Replaces fairseq's sinusoidal positions by ours; learned ones stay."""
    if not isinstance(positions, SinusoidalPositionalEmbedding):
        return positions
    size, width = positions.weights.shape
    return Positions(width, positions.padding_idx, size)


@contextlib.contextmanager
def _mask_norms(half: Encoder | Decoder, tokens: Tensor) -> Iterator[None]:
    """Gives the norms of an encoder or decoder the mask of tokens (B, T) in the layout in which they see them."""
    with contextlib.ExitStack() as stack:
        if half.masks_norms:
            pad_mask = tokens.eq(half.padding_idx)
            stack.enter_context(share_pad_mask(half, pad_mask.t()))
            if half.layernorm_embedding is not None:
                stack.enter_context(share_pad_mask(half.layernorm_embedding, pad_mask))
        yield


def _check_name(what: str, name: str, allowed: Collection[str]) -> None:
    if name not in allowed:
        nearest = ", ".join(difflib.get_close_matches(name, allowed, NUM_SUGGESTIONS, cutoff=0.0))
        raise ValueError(f"{what} {name!r} is not known to fairseq; the nearest are {nearest}")


def _check_kind(name: str, value: Any, default: Any) -> None:
    """Refuses a switch that is not true or false, and a number that is not one: fairseq would fail while it trains."""
    kind: Any = bool if isinstance(default, bool) else int | float
    if isinstance(default, int | float) and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
        raise ValueError(f"model.{name}={value!r} must be {'true or false' if kind is bool else 'a number'}")
