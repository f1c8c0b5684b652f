"""Beam search with fairseq's `SequenceGenerator`. Shapes: T length of a translation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from un.translation.batches import Batch
from un.translation.fairseq_library import SequenceGenerator
from un.translation.transformer import Transformer


@dataclass(frozen=True)
class BeamSearch:
    """Searches for translations; the defaults are fairseq's.

    A translation of a source of n tokens has at most max_len_a n + max_len_b tokens.

    Args:
        beam: Hypotheses kept; 1 is greedy.
        length_penalty: Power of the length by which log-probabilities are divided; a larger one favours longer
            translations.
        max_len_a: Tokens per source token, as above.
        max_len_b: Tokens in addition, as above.
        min_len: Minimum number of tokens, not counting the end of sentence.

    Raises:
        ValueError: The beam or the lengths leave nothing to find.
    """

    beam: int = 5
    length_penalty: float = 1.0
    max_len_a: float = 0.0
    max_len_b: int = 200
    min_len: int = 1

    def __post_init__(self) -> None:
        for name, least in (("beam", 1), ("min_len", 0), ("max_len_b", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"task.{name}={value} must be a whole number of at least {least}")
        if int(self.max_len_a + self.max_len_b) < max(self.min_len, 1):
            raise ValueError(f"task.max_len_b={self.max_len_b} leaves no room for task.min_len={self.min_len} tokens")

    def __str__(self) -> str:
        length = f"{self.max_len_a:g} n + {self.max_len_b}"
        return f"beam {self.beam}, length penalty {self.length_penalty:g}, {self.min_len} to {length} tokens"

    @torch.no_grad()
    def translate(self, model: Transformer, batch: Batch) -> list[Tensor]:
        """Returns the best translation of every sentence of a batch, each (T,) ids that end with end of sentence.

        The model works in evaluation mode and is left in the mode it was in.

        Args:
            model: On the device of the batch.
            batch: Comes from `LanguagePairDataset.collater`; its target is not read.
        """
        with keep_state(model):
            generator = SequenceGenerator(
                [model],
                model.decoder.dictionary,
                beam_size=self.beam,
                len_penalty=self.length_penalty,
                max_len_a=self.max_len_a,
                max_len_b=self.max_len_b,
                min_len=self.min_len,
            )
            # Cross-attention then keeps keys and values once per sentence, not once per hypothesis.
            model.decoder.set_beam_size(generator.beam_size)
            source = {name: value for name, value in batch["net_input"].items() if name != "prev_output_tokens"}
            hypotheses = generator.generate([model], {"id": batch["id"], "net_input": source})
        return [best["tokens"] for best, *_ in hypotheses]


@contextlib.contextmanager
def keep_state(model: Transformer) -> Iterator[None]:
    """Puts every module back into the mode that it was in, and takes the decoder out of beam search."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        model.decoder.set_beam_size(1)
        for module, training in modes:
            module.training = training
