import pytest
import torch
from torch import nn

from tests.translation.tiny import draw_sentences, make_batch, make_dictionary, make_model, make_unified
from un.norms import BatchNorm, Norm, UnifiedNorm
from un.surgery import replace_norms
from un.translation.transformer import build_transformer

SENTENCES = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13]]


def list_norms(model, kind):
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def compute_logits(model, batch):
    return model(**batch["net_input"])[0]


def test_every_norm_of_the_iwslt_model_is_replaced():
    dictionary = make_dictionary()
    with torch.device("meta"):
        model = build_transformer(dictionary, dictionary, encoder_normalize_before=True, share_all_embeddings=True)
    assert len(list_norms(model, nn.LayerNorm)) == 32
    assert len(replace_norms(model, UnifiedNorm).rows) == 32
    assert list_norms(model, nn.LayerNorm) == []
    assert len(list_norms(model, Norm)) == 32


def test_initial_values_of_the_iwslt_model():
    """Embeddings normal with 512^-1/2 and no padding; Xavier-uniform attention, whose q, k, v have gain 2^-1/2."""
    torch.manual_seed(0)
    dictionary = make_dictionary()
    model = build_transformer(dictionary, dictionary, encoder_normalize_before=True, share_all_embeddings=True)
    embedding = model.encoder.embed_tokens
    words = embedding.weight[torch.arange(len(embedding.weight)) != embedding.padding_idx]
    assert not embedding.weight[embedding.padding_idx].any()
    assert words.std().item() == pytest.approx(512**-0.5, rel=0.1)
    bound = (6 / (512 + 512)) ** 0.5
    for layer in (*model.encoder.layers, *model.decoder.layers):
        attention = layer.self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            assert projection.weight.abs().max().item() == pytest.approx(bound * 2**-0.5, rel=1e-3)
        assert attention.out_proj.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
        assert not attention.out_proj.bias.any()
        assert layer.fc1.weight.abs().max().item() == pytest.approx(512**-0.5, rel=1e-3)  # torch's Linear
        assert layer.fc2.weight.abs().max().item() == pytest.approx(1024**-0.5, rel=1e-3)


def test_sizes_come_from_arch_and_options_and_the_decoder_follows_the_encoder():
    dictionary = make_dictionary()
    with torch.device("meta"):
        model = build_transformer(dictionary, dictionary, encoder_layers=3, encoder_ffn_embed_dim=24)
        other = build_transformer(dictionary, dictionary, encoder_layers=3, decoder_layers=1)
        big = build_transformer(dictionary, dictionary, "transformer_vaswani_wmt_en_de_big")
    assert (len(model.encoder.layers), len(model.decoder.layers), len(other.decoder.layers)) == (3, 3, 1)
    layer = model.decoder.layers[0]
    assert (layer.fc1.out_features, layer.fc1.in_features, layer.self_attn.num_heads) == (24, 512, 4)
    assert (big.decoder.layers[5].fc1.out_features, big.encoder.layers[5].self_attn.num_heads) == (4096, 16)


def test_embeddings_are_one():
    model = make_model()
    weight = model.encoder.embed_tokens.weight
    assert model.decoder.embed_tokens.weight is weight
    assert model.decoder.output_projection.weight is weight


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "transformer_iwslt_en_de"}, r"model.arch 'transformer_iwslt_en_de' .* transformer_iwslt_de_en"),
        ({"encoder_embed": 16}, "model option 'encoder_embed' .* encoder_embed_dim"),
        ({"encoder_embed_dim": 15}, "encoder_embed_dim=15.* divisible by num_heads"),
        ({"encoder_layers": "two"}, "model.encoder_layers='two' must be a number"),
        ({"share_all_embeddings": 1}, "model.share_all_embeddings=1 must be true or false"),
        ({"activation_fn": "swoosh"}, "swoosh not supported"),
        ({"adaptive_softmax_cutoff": "9,20"}, "adaptive_softmax_cutoff is for a loss"),
    ],
)
def test_wrong_values_are_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_model(**options)
    assert "\n" not in str(caught.value)


def test_checkpointed_activations_change_nothing():
    """What is recomputed in the backward sees the padding masks of the forward, which are gone by then."""
    outcomes = []
    for checkpointed in (False, True):
        model = make_model(make_unified, pad_mask=True, encoder_layers=1, checkpoint_activations=checkpointed).double()
        for seed in range(3):
            model.train().zero_grad()
            compute_logits(model, make_batch(draw_sentences(5, seed=seed))).square().mean().backward()
        gradients = {f"{name} gradient": parameter.grad for name, parameter in model.named_parameters()}
        outcomes.append({**model.state_dict(), **gradients})
    plain, recomputed = outcomes
    for name, value in plain.items():  # gradients of shared weights are added up in another order
        torch.testing.assert_close(recomputed[name], value, rtol=1e-12, atol=1e-15, msg=name)


def pad(batch, extra):
    """More padding columns on both sides."""
    pads = batch["target"].new_full((len(batch["target"]), extra), make_dictionary().pad())
    source, previous = batch["net_input"]["src_tokens"], batch["net_input"]["prev_output_tokens"]
    longer = {"src_tokens": torch.cat([pads, source], 1), "prev_output_tokens": torch.cat([previous, pads], 1)}
    return {**batch, "net_input": {**batch["net_input"], **longer}}


FORMS = [{}, {"encoder_normalize_before": False}, {"layernorm_embedding": True}]


@pytest.mark.parametrize("options", FORMS)
def test_padding_changes_the_statistics_of_every_norm_unless_they_get_the_mask(options):
    def run(pad_mask, batch):
        model = make_model(BatchNorm, pad_mask, **options).train()
        compute_logits(model, batch)
        return {name: norm.running_var for name, norm in model.named_modules() if isinstance(norm, BatchNorm)}

    batch, whole = make_batch(SENTENCES), make_batch([[1, 2, 3], [4, 5, 6]])
    masked, more = run(True, batch), run(True, pad(batch, 3))
    for name, value in masked.items():
        torch.testing.assert_close(value, more[name], rtol=1e-4, atol=1e-6, msg=name)
    unmasked, unmasked_more = run(False, batch), run(False, pad(batch, 3))
    assert not [name for name, value in unmasked.items() if torch.allclose(value, unmasked_more[name], rtol=1e-3)]
    torch.testing.assert_close(run(True, whole), run(False, whole))


def test_decoding_step_by_step_gives_the_logits_of_the_whole():
    model = make_model(make_unified, True, layernorm_embedding=True).train()
    batch = make_batch(SENTENCES)
    for _ in range(4):
        compute_logits(model, batch)
    model.eval()
    previous = batch["net_input"]["prev_output_tokens"]
    with torch.no_grad():
        expected = compute_logits(model, batch)
        encoded = model.encoder(batch["net_input"]["src_tokens"])
        state = {}
        steps = [model.decoder(previous[:, :n], encoded, state)[0] for n in range(1, previous.shape[1] + 1)]
    real = previous.ne(make_dictionary().pad())
    torch.testing.assert_close(torch.cat(steps, 1)[real], expected[real], rtol=1e-4, atol=1e-5)


def test_training_continues_after_longer_sentences_in_inference_mode():
    model = make_model()
    with torch.inference_mode():
        compute_logits(model.eval(), make_batch([[1, 2, 3, 4, 5, 6]]))
    compute_logits(model.train(), make_batch([[1, 2, 3]])).sum().backward()


def test_norms_get_masks_of_their_layout_in_training_evaluation_and_decoding():
    model = make_model(make_unified, True, layernorm_embedding=True)
    batch = make_batch(SENTENCES)
    seen = {}

    def note(norm, inputs):
        seen[norm] = norm.shared_pad_mask
        assert norm.shared_pad_mask.shape == inputs[0].shape[:-1]

    norms = [module for module in model.modules() if isinstance(module, Norm)]
    for norm in norms:
        norm.register_forward_pre_hook(note)
    source, previous = batch["net_input"]["src_tokens"], batch["net_input"]["prev_output_tokens"]
    for training in (True, False):
        seen.clear()
        compute_logits(model.train(training), batch)
        assert set(seen) == set(norms)
        assert torch.equal(seen[model.encoder.layer_norm], source.eq(1).t())
        assert torch.equal(seen[model.decoder.layer_norm], previous.eq(1).t())
        assert torch.equal(seen[model.decoder.layernorm_embedding], previous.eq(1))
    seen.clear()
    model.decoder(previous[:, :4], model.encoder(source), {})
    assert torch.equal(seen[model.decoder.layer_norm], previous[:, 3:4].eq(1).t())
    assert all(norm.shared_pad_mask is None for norm in norms)
