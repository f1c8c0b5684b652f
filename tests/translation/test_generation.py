import pytest
import torch

from tests.translation.tiny import draw_sentences, make_batch, make_dictionary, make_model, make_unified, train_a_little
from un.translation.generation import BeamSearch


@pytest.fixture(scope="module")
def model():
    """Trained a little, so that it has learned to end sentences."""
    return train_a_little(make_model(make_unified, True))


def search_greedily(model, batch, longest):
    """Without fairseq's search and without incremental state."""
    eos, pad = model.decoder.dictionary.eos(), model.decoder.dictionary.pad()
    source = batch["net_input"]["src_tokens"]
    found = []
    for row in source:
        tokens = [eos]
        encoded = model.encoder(row[row.ne(pad)].unsqueeze(0))
        while len(tokens) <= longest:
            logits = model.decoder(torch.tensor([tokens]), encoded)[0][0, -1]
            logits[pad] = -torch.inf
            if len(tokens) == 1:
                logits[eos] = -torch.inf  # min_len
            tokens.append(int(logits.argmax()))
            if tokens[-1] == eos:
                break
        if tokens[-1] != eos:
            tokens.append(eos)
        found.append(tokens[1:])
    return found


def test_beam_of_one_takes_the_best_word_at_each_step(model):
    batch = make_batch(draw_sentences(5, seed=9))
    found = BeamSearch(beam=1, max_len_b=7).translate(model, batch)
    with torch.no_grad():
        expected = search_greedily(model.eval(), batch, longest=7)
    model.train()
    assert [tokens.tolist() for tokens in found] == expected


def score(model, batch, row, tokens, length_penalty):
    """Log-probability of a translation over a power of its length."""
    eos = model.decoder.dictionary.eos()
    previous = torch.tensor([[eos, *tokens[:-1].tolist()]])
    source = batch["net_input"]["src_tokens"][row]
    encoded = model.encoder(source[source.ne(make_dictionary().pad())].unsqueeze(0))
    log_probabilities = model.decoder(previous, encoded)[0][0].log_softmax(-1)
    return float(log_probabilities.gather(-1, tokens.unsqueeze(-1)).sum() / len(tokens) ** length_penalty)


def test_a_wider_beam_finds_better_translations(model):
    batch = make_batch(draw_sentences(8, seed=3))
    narrow, wide = (BeamSearch(beam, max_len_b=8).translate(model, batch) for beam in (1, 5))
    model.eval()
    with torch.no_grad():
        gains = [
            score(model, batch, row, new, 1) - score(model, batch, row, old, 1)
            for row, (old, new) in enumerate(zip(narrow, wide, strict=True))
        ]
    model.train()
    assert max(gains) > 1e-3
    assert sum(gains) > 0


def test_translations_do_not_depend_on_the_beam_before(model):
    batch = make_batch(draw_sentences(6, seed=4))
    first = BeamSearch(1, max_len_b=6).translate(model, batch)
    BeamSearch(5, max_len_b=6).translate(model, batch)
    again = BeamSearch(1, max_len_b=6).translate(model, batch)
    assert all(torch.equal(old, new) for old, new in zip(first, again, strict=True))


def test_lengths_stay_within_the_limits(model):
    batch = make_batch(draw_sentences(6, seed=5))
    eos = make_dictionary().eos()
    longest = batch["net_input"]["src_tokens"].shape[1]
    for search, most in ((BeamSearch(2, max_len_b=3), 3), (BeamSearch(2, 1.0, 0.5, 1), longest // 2 + 1)):
        assert all(len(tokens) <= most + 1 and tokens[-1] == eos for tokens in search.translate(model, batch))
    assert all(len(tokens) == 7 for tokens in BeamSearch(2, max_len_b=6, min_len=6).translate(model, batch))


def test_a_larger_length_penalty_gives_no_shorter_translations(model):
    batch = make_batch(draw_sentences(8, seed=6))
    short, long = (BeamSearch(4, penalty, max_len_b=8).translate(model, batch) for penalty in (0.0, 3.0))
    assert sum(map(len, long)) > sum(map(len, short))


def test_the_model_is_left_as_it_was(model):
    batch = make_batch(draw_sentences(3))
    model.train()
    model.encoder.layers[1].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    BeamSearch(3, max_len_b=4).translate(model, batch)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.beam_size == 1 for module in model.modules() if hasattr(module, "beam_size"))
    model.train()


def test_the_target_is_not_looked_at(model):
    batch = make_batch(draw_sentences(4))
    search = BeamSearch(2, max_len_b=5)
    expected = search.translate(model, batch)
    blind = {"id": batch["id"], "net_input": {k: v for k, v in batch["net_input"].items() if k[:4] != "prev"}}
    assert all(torch.equal(a, b) for a, b in zip(search.translate(model, blind), expected, strict=True))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beam": 0}, "task.beam=0 must be a whole number of at least 1"),
        ({"beam": 2.5}, "task.beam=2.5 must be a whole number"),
        ({"max_len_a": -1}, "task.max_len_a=-1 must be at least 0"),
        ({"max_len_b": 3, "min_len": 4}, "task.max_len_b=3 leaves no room for task.min_len=4"),
        ({"max_len_b": 0, "min_len": 0}, "task.max_len_b=0 leaves no room"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        BeamSearch(**values)
