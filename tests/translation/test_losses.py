import pytest
import torch

from tests.translation.tiny import draw_sentences, make_batch, make_model
from un.translation.losses import sum_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_loss_and_gradients_are_those_of_fairseq(smoothing):
    from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss

    batch = make_batch(draw_sentences(6))
    ours, theirs = make_model(), make_model()
    loss = sum_cross_entropy(ours, batch, smoothing)
    output = theirs(**batch["net_input"])
    log_probabilities = theirs.get_normalized_probs(output, log_probs=True)
    expected, _ = label_smoothed_nll_loss(log_probabilities, batch["target"], smoothing, ignore_index=1)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_half_precision_is_summed_in_single():
    model, batch = make_model(), make_batch(draw_sentences(6))
    expected = sum_cross_entropy(model, batch, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum_cross_entropy(model, batch, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)
