import pytest
import torch

from tests.translation.tiny import draw_sentences, make_batch
from un.translation.generation import BeamSearch


@pytest.fixture
def model(trained_model):
    return trained_model.eval()


def search_greedily(model, batch, longest):
    """Without fairseq's search and without incremental state."""
    eos, pad = model.decoder.dictionary.eos(), model.decoder.dictionary.pad()
    found = []
    for row in batch["net_input"]["src_tokens"]:
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
        found.append(tokens[1:] if tokens[-1] == eos else [*tokens[1:], eos])
    return found


def test_beam_of_one_takes_the_best_word_at_each_step(model):
    batch = make_batch(draw_sentences(5, seed=9))
    found = BeamSearch(beam=1, max_len_b=7).translate(model, batch)
    with torch.no_grad():
        expected = search_greedily(model, batch, longest=7)
    assert [tokens.tolist() for tokens in found] == expected


def test_lengths_stay_within_the_limits(model):
    batch = make_batch(draw_sentences(6, seed=5))
    eos = model.decoder.dictionary.eos()
    longest = batch["net_input"]["src_tokens"].shape[1]
    for search, most in ((BeamSearch(2, max_len_b=3), 3), (BeamSearch(2, 1.0, 0.5, 1), longest // 2 + 1)):
        assert all(len(tokens) <= most + 1 and tokens[-1] == eos for tokens in search.translate(model, batch))
    assert all(len(tokens) == 7 for tokens in BeamSearch(2, max_len_b=6, min_len=6).translate(model, batch))
    batch = make_batch(draw_sentences(8, seed=6))
    short, long = (BeamSearch(4, penalty, max_len_b=8).translate(model, batch) for penalty in (0.0, 3.0))
    assert sum(map(len, long)) > sum(map(len, short))


def test_the_model_is_left_as_it_was_and_the_target_is_not_looked_at(model):
    batch = make_batch(draw_sentences(3))
    model.train().encoder.layers[1].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    search = BeamSearch(3, max_len_b=4)
    expected = search.translate(model, batch)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.beam_size == 1 for module in model.modules() if hasattr(module, "beam_size"))
    source = {name: value for name, value in batch["net_input"].items() if name != "prev_output_tokens"}
    found = search.translate(model, {"id": batch["id"], "net_input": source})  # as if nothing had been searched before
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beam": 2.5}, "task.beam=2.5 must be a whole number of at least 1"),
        ({"max_len_b": 3, "min_len": 4}, "task.max_len_b=3 leaves no room for task.min_len=4"),
        ({"max_len_b": 0, "min_len": 0}, "task.max_len_b=0 leaves no room"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        BeamSearch(**values)
