"""Random models, folded on one example: exact on every other input, or refused."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.folding.helpers import randomize, relative_difference
from tests.folding.random_graphs import RandomModel, draw_inputs
from un.folding import fold_norms

OTHERS = 10  # inputs on which each fold is compared


def check_random_fold(seed: int) -> Counter[str]:
    """Folds one model; counts norms that vanished or stayed, and inputs that were exact or refused."""
    model = randomize(RandomModel(seed), seed).double()
    counts: Counter[str] = Counter()
    try:
        folded, report = fold_norms(model, draw_inputs(seed, bare=seed % 2 == 0))
    except ArithmeticError:
        return Counter(refused_models=1)
    counts.update(norms_folded=len(report.folded), norms_left=len(report.remaining))
    for other in range(OTHERS):
        inputs = draw_inputs(1000 + other)
        with torch.no_grad():
            try:
                expected = model(*inputs)
            except (RuntimeError, IndexError):
                continue  # no input of this model
            try:
                actual = folded(*inputs)
            except ValueError:
                counts["inputs_refused"] += 1
                continue
        assert relative_difference(expected, actual) < 1e-9, f"seed {seed}: {model.describe()}\n{report}"
        counts["inputs_exact"] += 1
    return counts


def test_folds_of_random_models_are_exact_or_refused():
    counts = sum((check_random_fold(seed) for seed in range(10)), Counter())
    assert counts["norms_folded"] > 0
    assert counts["inputs_exact"] > 10 * counts["inputs_refused"]
    assert counts["refused_models"] <= 1


@pytest.mark.slow
def test_folds_of_many_random_models_are_exact_or_refused():
    counts = sum((check_random_fold(seed) for seed in range(50, 550)), Counter())
    assert counts["norms_folded"] > 100
    assert counts["inputs_exact"] > 10 * counts["inputs_refused"]
