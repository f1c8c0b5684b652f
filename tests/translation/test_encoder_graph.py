"""The encoder as a graph: what fairseq's encoder computes, at any batch size and length."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.folding.helpers import randomize
from tests.translation.tiny import draw_sentences, make_batch, make_model, make_unified
from un.finished.onnx_graph import GraphSession, write_graph
from un.folding import fold_norms
from un.tasks import GraphPart
from un.translation.encoder_graph import EncoderGraph, replace_encoder
from un.translation.generation import BeamSearch

FORMS = {
    "pre-norm": {},
    "post-norm": {"encoder_normalize_before": False, "decoder_normalize_before": False},
    "learned": {"encoder_learned_pos": True, "layernorm_embedding": True, "no_scale_embedding": True},
}


def build(form: str, **options: Any) -> nn.Module:
    return randomize(make_model(make_unified, **FORMS[form], **options))


@pytest.mark.parametrize("form", FORMS)
def test_it_computes_what_the_encoder_does(form: str) -> None:
    model = build(form)
    source = make_batch(draw_sentences(5))["net_input"]["src_tokens"]
    assert source.eq(model.encoder.padding_idx).any()
    with torch.no_grad():
        states, padding_mask = EncoderGraph(model)(source)
        expected = model.encoder(source)
    assert torch.equal(padding_mask, expected["encoder_padding_mask"][0])
    real = ~padding_mask.t()
    torch.testing.assert_close(states[real], expected["encoder_out"][0][real], rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # the exporter of ONNX takes many seconds, however small the model
def test_a_folded_encoder_translates_in_onnxruntime(tmp_path: Path) -> None:
    model = build("pre-norm", encoder_layers=1)
    batch = make_batch(draw_sentences(4))
    folded, _ = fold_norms(model, batch["net_input"], on_unfoldable="raise")
    graph, axes = EncoderGraph(folded), {"source_tokens": {0: "batch", 1: "length"}}
    part = GraphPart(graph, {"source_tokens": batch["net_input"]["src_tokens"][:2]}, axes, ("states", "padding_mask"))
    write_graph(part, tmp_path / "encoder.onnx")
    session = GraphSession(tmp_path / "encoder.onnx")
    for shape in ((1, 1), (3, 20)):
        tokens = torch.randint(4, 30, shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(session(tokens), graph(tokens), rtol=1e-4, atol=1e-5)
    search = BeamSearch(beam=3, max_len_b=8)
    other = make_batch(draw_sentences(5, longest=12, seed=1))
    expected = search.translate(model, other)
    replace_encoder(folded.encoder, session)
    for found, wanted in zip(search.translate(folded, other), expected, strict=True):
        assert torch.equal(found, wanted)


def test_the_given_graph_is_what_translates() -> None:
    """With an encoder that sees nothing but zeros all sources are translated alike."""
    model = build("pre-norm")
    graph = EncoderGraph(model)

    def run(tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        states, padding_mask = graph(tokens)
        return torch.zeros_like(states), torch.zeros_like(padding_mask)

    batch = make_batch(draw_sentences(4))
    replace_encoder(model.encoder, run)
    first, *rest = BeamSearch(beam=2, max_len_b=6).translate(model, batch)
    assert all(torch.equal(first, other) for other in rest)
