"""The encoder-decoder of fairseq: every norm of the pre-norm and the post-norm form, and the same beams."""

from __future__ import annotations

import copy
import logging
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from hydra.core.config_store import ConfigStore
from torch import Tensor, nn

from tests.folding.helpers import OFFLINE, check_fold, list_norm_keys, outcomes, randomize, rules
from un.folding import fold_norms
from un.norms import BatchNorm
from un.surgery import replace_norms

WORDS, WIDTH, LAYERS = 20, 16, 2


@pytest.fixture(scope="module")
def fairseq():
    """fairseq's models, without what its import does to Hydra and to logging."""
    store, root = ConfigStore.instance(), logging.getLogger()
    saved, handlers, level = copy.deepcopy(store.repo), root.handlers[:], root.level
    import fairseq.models.transformer

    store.repo, root.handlers[:] = saved, handlers
    root.setLevel(level)
    return fairseq


def make_model(fairseq, pre_norm: bool, shared: bool = True, **options: bool) -> nn.Module:
    words = fairseq.data.Dictionary()
    for number in range(WORDS):
        words.add_symbol(f"word{number}")
    sizes = {"embed_dim": WIDTH, "ffn_embed_dim": 24, "attention_heads": 2, "layers": LAYERS}
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (*sizes.items(), ("normalize_before", pre_norm))
    }
    args = Namespace(**sides, share_all_embeddings=shared, **options)
    fairseq.models.ARCH_CONFIG_REGISTRY["transformer"](args)
    torch.manual_seed(0)
    model = fairseq.models.transformer.TransformerModel.build_model(
        args, SimpleNamespace(source_dictionary=words, target_dictionary=words)
    )
    model.words = words
    return model


def make_batch(seed: int = 0) -> dict[str, Tensor]:
    """Sources padded on the left and targets on the right, as fairseq's batches are."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(4, 4 + WORDS, (3, 7), generator=generator)
    target = torch.randint(4, 4 + WORDS, (3, 6), generator=generator)
    source[:, -1] = target[:, 0] = 2
    source[0, :3] = target[1, 4:] = 1
    return {"src_tokens": source, "src_lengths": torch.tensor([4, 7, 7]), "prev_output_tokens": target}


class Logits(nn.Module):
    """The logits alone, of positional inputs, at positions that are not padding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs)[0]


@pytest.mark.parametrize("norm", OFFLINE)
@pytest.mark.parametrize("pre_norm", [True, False])
def test_every_norm_of_the_transformer_vanishes(fairseq, pre_norm, norm):
    model = Logits(make_model(fairseq, pre_norm))
    replace_norms(model, OFFLINE[norm])
    inputs = tuple(make_batch().values())
    folded, report = check_fold(randomize(model), inputs, tuple(make_batch(1).values()), on_unfoldable="raise")
    found = {row.site.removeprefix("model."): row for row in report.rows}
    assert len(found) == (6 * LAYERS - LAYERS + 2 if pre_norm else 5 * LAYERS)
    assert list_norm_keys(folded, report) == []
    last = found["encoder.layer_norm" if pre_norm else f"encoder.layers.{LAYERS - 1}.final_layer_norm"]
    readers = {f"model.decoder.layers.{i}.encoder_attn.{side}_proj.weight" for i in range(LAYERS) for side in "kv"}
    assert readers <= set(last.into)
    projection = found["decoder.layer_norm" if pre_norm else f"decoder.layers.{LAYERS - 1}.final_layer_norm"]
    assert projection.rule == "R7"
    others = {row.rule for row in report.rows if row not in (last, projection)}
    assert others == ({"R1"} if pre_norm else {"R8 cumulative"})
    assert (report.condition > 1) == (not pre_norm)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_the_tied_projection_can_be_kept(fairseq, pre_norm):
    model = make_model(fairseq, pre_norm)
    replace_norms(model, BatchNorm)
    folded, report = fold_norms(randomize(model).double(), make_batch(), tied="keep")
    (row,) = report.remaining
    assert row.site == ("decoder.layer_norm" if pre_norm else f"decoder.layers.{LAYERS - 1}.final_layer_norm")
    assert "embedding" in row.stays
    assert folded.decoder.output_projection.weight is folded.decoder.embed_tokens.weight


@pytest.mark.parametrize("pre_norm", [True, False])
def test_the_model_folds_as_it_is_called_in_training(fairseq, pre_norm):
    """Its second output holds hidden states, which a post-norm fold changes and which nobody decodes from."""
    model = make_model(fairseq, pre_norm)
    replace_norms(model, BatchNorm)
    folded, report = fold_norms(randomize(model), make_batch(), on_unfoldable="raise")
    batch = make_batch(2)
    torch.testing.assert_close(folded(**batch)[0], model(**batch)[0], rtol=1e-4, atol=1e-4)
    assert {"encoder.version", "decoder.version"} <= set(folded.state_dict())
    assert report.difference < 1e-9


def test_an_embedding_norm_before_masking_is_kept_and_the_others_fold(fairseq):
    model = make_model(fairseq, pre_norm=False, layernorm_embedding=True)
    replace_norms(model, BatchNorm)
    _, report = fold_norms(randomize(model), make_batch())
    assert {row.site: row.stays for row in report.remaining} == {
        "encoder.layernorm_embedding": "read by mul in encoder"
    }
    assert rules(report)["decoder.layernorm_embedding"] == "R8 cumulative"


def test_layer_norm_of_the_pre_norm_form_loses_its_affine(fairseq):
    model = make_model(fairseq, pre_norm=True)
    _, report = fold_norms(randomize(model), make_batch())
    assert set(outcomes(report).values()) == {"affine folded"}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_beams_are_the_same(fairseq, pre_norm, shared):
    from fairseq.sequence_generator import SequenceGenerator

    model = make_model(fairseq, pre_norm, shared)
    replace_norms(model, BatchNorm)
    folded, _ = fold_norms(randomize(model), make_batch(), on_unfoldable="raise")
    sample = {"net_input": {name: make_batch(3)[name] for name in ("src_tokens", "src_lengths")}}
    found = []
    for candidate in (model, folded):
        generator = SequenceGenerator([candidate], model.words, beam_size=3, max_len_b=8)
        found.append(generator.generate([candidate], sample))
    for expected, actual in zip(*found, strict=True):
        assert [beam["tokens"].tolist() for beam in actual] == [beam["tokens"].tolist() for beam in expected]
        scores = [torch.stack([beam["score"] for beam in beams]) for beams in (actual, expected)]
        torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)
