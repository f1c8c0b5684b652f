"""The Transformer of `un.translation`: folded with and without padding masks, searched with its own beam search."""

from __future__ import annotations

import pytest
import torch

from tests.folding.helpers import OFFLINE, randomize, relative_difference
from tests.translation.tiny import draw_sentences, make_batch, make_model, make_unified, train_a_little
from un.folding import fold_norms
from un.translation.generation import BeamSearch

SEARCH = BeamSearch(beam=3, max_len_a=1.0, max_len_b=5)
LAST = {True: "decoder.layer_norm", False: "decoder.layers.1.final_layer_norm"}  # by pre_norm


def check_transformer(model, num_left, tied, tolerance=1e-5):
    """Folds on one batch, compares translations and logits on another; returns the report."""
    example, other = (make_batch(draw_sentences(8, seed=seed)) for seed in (0, 1))
    folded, report = fold_norms(model, example["net_input"], tied=tied)
    assert len(report.remaining) == num_left, str(report)
    found, expected = (SEARCH.translate(candidate, other) for candidate in (folded, model))
    for actual, tokens in zip(found, expected, strict=True):
        assert torch.equal(actual, tokens)
    with torch.no_grad():
        logits = [candidate(**other["net_input"])[0] for candidate in (model, folded)]
    assert relative_difference(*logits) < tolerance
    assert folded.state_dict().keys() >= {"encoder.embed_tokens.weight", "decoder.output_projection.weight"}
    return report


@pytest.mark.parametrize("pad_mask", [False, True])
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("norm", OFFLINE)
def test_every_norm_vanishes_and_translations_stay(norm, pre_norm, pad_mask):
    model = randomize(make_model(OFFLINE[norm], pad_mask, encoder_normalize_before=pre_norm))
    report = check_transformer(model, 0, "untie")
    rules = {row.site: row.rule for row in report.rows}
    assert rules.pop(LAST[pre_norm]) == "R7"
    assert {rule for site, rule in rules.items() if "decoder" in site} == {"R1" if pre_norm else "R8 cumulative"}


@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_tied_projection_keeps_one_norm(pre_norm):
    model = randomize(make_model(OFFLINE["un"], True, encoder_normalize_before=pre_norm))
    report = check_transformer(model, 1, "keep")
    assert report.remaining[0].site == LAST[pre_norm]
    assert report.remaining[0].outcome == "multiply-add"


def test_the_published_size_has_32_norms_of_which_31_fold_with_a_tied_projection():
    model = randomize(make_model(OFFLINE["un"], True, encoder_layers=6))
    report = check_transformer(model, 1, "keep", tolerance=1e-4)
    assert len(report.rows) == 32
    assert report.remaining[0].site == LAST[True]


def test_an_untied_projection_is_the_last_layer():
    model = randomize(make_model(OFFLINE["un"], share_all_embeddings=False))
    report = check_transformer(model, 0, "keep")
    assert [row.site for row in report.rows if row.rule == "R4"] == [LAST[True]]


def test_a_trained_model_translates_as_before():
    model = train_a_little(make_model(make_unified, True))
    check_transformer(model.eval(), 0, "untie")
    batch = make_batch(draw_sentences(8, seed=1))
    assert len({tuple(tokens.tolist()) for tokens in SEARCH.translate(model, batch)}) > 1
