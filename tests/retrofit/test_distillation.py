"""What the original of a retrofitted model says to its training."""

import pytest
import torch
from torch import nn

from tests.retrofit.test_retrofit import C, draw_batches, draw_model
from un.norms import UnifiedNorm
from un.retrofit import retrofit
from un.retrofit.distillation import Distillation, measure_divergence
from un.surgery import share_pad_mask

SITES = ("1.norm", "2.norm", "3")


def teach(**options):
    original = draw_model()
    model, _ = retrofit(original, draw_batches(), UnifiedNorm)
    return original, model.train(), Distillation(original, model, SITES, **options)


def test_divergence_is_that_of_the_original_from_the_model():
    p, q = torch.tensor([[0.2, 0.8]]), torch.tensor([[0.5, 0.5]])
    expected = (p * (p / q).log()).sum()
    torch.testing.assert_close(measure_divergence(q.log().repeat(3, 1), p.log().repeat(3, 1)), expected)


def test_predictions_teach_the_model_alone():
    original, model, distillation = teach(logits_weight=2.0)
    (batch,) = draw_batches(1)
    logits = model(batch)
    term = distillation(logits, lambda other: other(batch))
    torch.testing.assert_close(term, 2 * measure_divergence(logits, original(batch)))
    term.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in original.parameters())


def test_outputs_that_are_no_logits_are_compared_as_told():
    original, model, distillation = teach(logits_weight=3.0, compare=nn.functional.mse_loss)
    (batch,) = draw_batches(1)
    outputs = model(batch)
    expected = nn.functional.mse_loss(outputs, original(batch))
    torch.testing.assert_close(distillation(outputs, lambda other: other(batch)), 3 * expected)


def test_hidden_states_at_the_norms_teach_it_without_padding():
    _, model, distillation = teach(logits_weight=0.0, hidden_weight=1.0)
    (batch,) = draw_batches(1)
    pad_mask = torch.zeros(8, 4, dtype=torch.bool)
    pad_mask[:, 3] = True
    dirty = batch.masked_fill(pad_mask.unsqueeze(-1), 1e6)
    with share_pad_mask(model, pad_mask):
        logits = model(dirty)
    term = distillation(logits, lambda other: other(batch))  # which is other than `dirty` in the padding alone
    assert 0 < float(term) < 10
    term.backward()
    assert model[1].norm.weight.grad is not None


def test_nothing_to_say():
    _, model, distillation = teach(logits_weight=0.0)
    assert distillation(model(draw_batches(1)[0]), lambda other: pytest.fail("not needed")) is None


def test_norms_leave_one_after_the_other_in_training_alone():
    original, step = draw_model(), [0]
    model, _ = retrofit(original, draw_batches(), UnifiedNorm)
    Distillation(original, model, SITES, every=10, read_step=lambda: step[0])
    (batch,) = draw_batches(1)
    plain = model.eval()(batch)
    for now, kept in ((0, 3), (10, 2), (29, 1), (30, 0)):
        step[0] = now
        seen = {name: [] for name in SITES}
        handles = [
            part.get_submodule(name).register_forward_hook(lambda _, args, y, found=seen[name]: found.append(y))
            for name in SITES
            for part in (original, model)
        ]
        model.train()(batch)
        for handle in handles:
            handle.remove()
        assert sum(len(results) == 2 and torch.equal(*results) for results in seen.values()) == kept
        assert sum(len(results) == 1 for results in seen.values()) == 3 - kept
    torch.testing.assert_close(model.eval()(batch).shape, plain.shape)


@pytest.mark.parametrize("options", [{"logits_weight": -1.0}, {"hidden_weight": -1.0}, {"every": -1}], ids=str)
def test_refuses_what_is_below_0(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
        Distillation(nn.LayerNorm(C), nn.LayerNorm(C), (), **options)
