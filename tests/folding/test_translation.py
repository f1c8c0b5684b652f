"""The encoder-decoder of fairseq: every norm of the pre-norm and the post-norm form, and the same translations."""

from __future__ import annotations

import pytest
import torch

from tests.folding.helpers import OFFLINE, list_norm_keys, randomize, relative_difference
from tests.translation.tiny import draw_sentences, make_batch, make_model
from un.folding import fold_norms
from un.translation.generation import BeamSearch

LAYERS = 2
SEARCH = BeamSearch(beam=3, max_len_a=1.0, max_len_b=5)
LAST = {True: "decoder.layer_norm", False: f"decoder.layers.{LAYERS - 1}.final_layer_norm"}  # by pre_norm


def check_transformer(model, num_left, tolerance=1e-5, **options):
    """Folds on one batch, compares translations and logits on another; returns the folded model and its report."""
    example, other = (make_batch(draw_sentences(8, seed=seed)) for seed in (0, 1))
    folded, report = fold_norms(model, example["net_input"], **options)
    assert len(report.remaining) == num_left, str(report)
    found, expected = (SEARCH.translate(candidate, other) for candidate in (folded, model))
    for actual, tokens in zip(found, expected, strict=True):
        assert torch.equal(actual, tokens)
    with torch.no_grad():
        logits = [candidate(**other["net_input"])[0] for candidate in (model, folded)]
    assert relative_difference(*logits) < tolerance
    assert folded.state_dict().keys() >= {"encoder.embed_tokens.weight", "decoder.output_projection.weight"}
    return folded, report


@pytest.mark.parametrize(("norm", "pad_mask", "pre_norm"), [("prepbn", False, True), ("un", True, False)])
def test_every_norm_vanishes_and_translations_stay(norm, pad_mask, pre_norm):
    model = randomize(make_model(OFFLINE[norm], pad_mask, encoder_normalize_before=pre_norm))
    folded, report = check_transformer(model, 0)
    assert list_norm_keys(folded, report) == []
    rows = {row.site: row for row in report.rows}
    assert len(rows) == (5 * LAYERS + 2 if pre_norm else 5 * LAYERS)
    assert rows.pop(LAST[pre_norm]).rule == "R7"
    memory = rows.pop("encoder.layer_norm" if pre_norm else f"encoder.layers.{LAYERS - 1}.final_layer_norm")
    readers = {f"decoder.layers.{i}.encoder_attn.{side}_proj.weight" for i in range(LAYERS) for side in "kv"}
    assert readers <= set(memory.into)
    assert {row.rule for row in rows.values()} == {"R1" if pre_norm else "R8 cumulative"}
    assert (report.condition > 1) == (not pre_norm)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_a_tied_projection_keeps_one_norm(pre_norm):
    model = randomize(make_model(OFFLINE["batchnorm"], True, encoder_normalize_before=pre_norm))
    folded, report = check_transformer(model, 1, tied="keep")
    (row,) = report.remaining
    assert (row.site, row.outcome) == (LAST[pre_norm], "multiply-add")
    assert "embedding" in row.stays
    assert folded.decoder.output_projection.weight is folded.decoder.embed_tokens.weight


@pytest.mark.slow  # full depth: the small models above have the same 12 kinds of norms
def test_the_published_size_has_32_norms_of_which_31_fold_with_a_tied_projection():
    model = randomize(make_model(OFFLINE["un"], True, encoder_layers=6))
    _, report = check_transformer(model, 1, tied="keep", tolerance=1e-4)
    assert len(report.rows) == 32
    assert report.remaining[0].site == LAST[True]


def test_an_embedding_norm_before_masking_is_kept_and_the_others_fold():
    model = randomize(make_model(OFFLINE["batchnorm"], encoder_normalize_before=False, layernorm_embedding=True))
    _, report = check_transformer(model, 1)
    assert {row.site: row.stays for row in report.remaining} == {
        "encoder.layernorm_embedding": "read by mul in encoder"
    }
    assert {row.rule for row in report.rows if "decoder.layernorm_embedding" in row.site} == {"R8 cumulative"}
