"""BLEU and chrF with sacrebleu, and the file with the translations."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric

from un.files import replace_file


@dataclass(frozen=True)
class SentencePair:
    """A sentence, its reference and its translation as a reader sees them; `id` is its line in the split."""

    id: int
    source: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class Score:
    """A value in percent, and how it was computed."""

    value: float
    details: str


def score_translations(
    pairs: Sequence[SentencePair],
    tokenized_hypotheses: Sequence[str],
    tokenized_references: Sequence[str],
    lowercase: bool,
) -> dict[str, Score]:
    """Returns `bleu`, `sacrebleu` and `chrf` of a corpus with one reference per sentence.

    Args:
        pairs: The sentences, hypotheses detokenised.
        tokenized_hypotheses: Their Moses tokens, BPE joined.
        tokenized_references: The same of the references.
        lowercase: Whether translations are lower-cased, so that references are compared in lower case.
    """
    detokenized = [pair.hypothesis for pair in pairs], [pair.reference for pair in pairs]
    tokens = "lower-cased Moses tokens" if lowercase else "Moses tokens"
    # `force` keeps sacrebleu from warning that the text looks tokenised, which here it is.
    bleu = BLEU(tokenize="none", force=True)
    return {
        "bleu": _score(bleu, f"BLEU-4 on {tokens}", tokenized_hypotheses, tokenized_references),
        "sacrebleu": _score(BLEU(lowercase=lowercase), "BLEU-4 on detokenised text", *detokenized),
        "chrf": _score(CHRF(lowercase=lowercase), "chrF2 on detokenised text", *detokenized),
    }


def _score(metric: Metric, kind: str, hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    value = metric.corpus_score(hypotheses, [references]).score
    return Score(value, f"{kind}, one reference, sacrebleu {metric.get_signature()}")


def write_translations(pairs: Sequence[SentencePair], path: Path) -> None:
    """Writes a table with tabs between the columns `id`, `source`, `reference` and `hypothesis`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        pd.DataFrame(list(pairs)).to_csv(file, sep="\t", index=False, lineterminator="\n")
