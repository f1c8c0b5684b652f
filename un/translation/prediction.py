"""Translating sentences. Shapes: T length of a translation."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from un.translation.batches import Batch, TokenSampler, load_batches
from un.translation.preparation.lines import read_lines
from un.translation.preprocessor import TextPreprocessor
from un.translation.sources import BYTE_ORDER_MARK, ParallelText
from un.translation.vocabulary import encode_text

STDIN = "-"


@dataclass(frozen=True)
class SentencePrediction:
    """Turns sentences into batches as in evaluation, and what beam search finds into text.

    Args:
        preprocessor: Splits and joins text as in the test of the run.
        max_source_positions: Most tokens of a sentence.
        max_tokens: Of a batch.
    """

    preprocessor: TextPreprocessor
    max_source_positions: int
    max_tokens: int

    def read(self, source: str) -> list[str]:
        """Returns the lines of a file or of standard input, or the sentence that is given itself."""
        if source == STDIN:
            lines = [line.removesuffix("\n") for line in sys.stdin]
        elif Path(source).is_file():
            lines = list(read_lines(Path(source)))
        elif looks_like_a_file(source):
            raise ValueError(
                f"input={source}: no such file ({Path(source).resolve()}); if it is the text to translate, give it by "
                "input=-"
            )
        else:
            lines = [source]
        if not lines:
            raise ValueError(f"input={source} holds no lines")
        lines[0] = lines[0].removeprefix(BYTE_ORDER_MARK)
        return [line.removesuffix("\r") for line in lines]

    def make_batches(self, sentences: Sequence[str]) -> Iterator[tuple[Sequence[int], Batch]]:
        """Yields the places of some sentences, and their batch; blank ones, which have no words, are in none.

        Raises:
            ValueError: A sentence is longer than the model or a batch allows.
        """
        places = [place for place, sentence in enumerate(sentences) if sentence.strip()]
        if not places:
            return
        chosen = [sentences[place] for place in places]
        split = encode_text(ParallelText("the input", chosen, [""] * len(chosen), places), self.preprocessor)
        fitting = split.list_fitting(self.max_source_positions, 1, self.max_tokens, training=False)
        sampler = TokenSampler(split.dataset.sizes, fitting, self.max_tokens, training=False)
        for batch in load_batches(split.dataset, sampler, num_workers=0, start=0):
            yield [places[number] for number in batch["id"].tolist()], batch

    def interpret(self, hypotheses: Sequence[Tensor]) -> list[str]:
        """Returns the translations of a batch as a reader sees them, from ids (T,) each."""
        return [self.preprocessor.detokenize(self.preprocessor.decode(tokens.cpu())) for tokens in hypotheses]

    def write(self, sentences: Sequence[str], results: Sequence[str]) -> str:
        """Returns a line for every sentence."""
        return "".join(f"{result}\n" for result in results)


def looks_like_a_file(text: str) -> bool:
    """Tells whether a text is a word with a slash or a suffix in it."""
    return " " not in text and ("/" in text or Path(text).suffix[1:].isalnum())
