"""fairseq's Transformer with UN and padding masks trains compiled as it does in eager mode, whatever the lengths."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.compilation import assert_compiled_training_agrees, make_unified
from tests.translation.tiny import draw_sentences, make_batch, make_model
from un.translation.losses import sum_cross_entropy
from un.translation.transformer import Transformer

STEPS = 20
FORMS: dict[str, dict[str, Any]] = {
    "pre-norm": {},
    "post-norm": {"encoder_normalize_before": False, "decoder_normalize_before": False},
    "learned": {"encoder_learned_pos": True, "decoder_learned_pos": True, "layernorm_embedding": True},
}


def make_batches() -> list[dict[str, Any]]:
    """Of 5 to 9 pairs, with sources and targets of all lengths, with and without padding."""
    batches = []
    for number in range(STEPS):
        size, longest = 5 + number % 5, 4 + number
        targets = draw_sentences(size, longest=12, seed=STEPS + number)
        batches.append(make_batch(draw_sentences(size, longest=longest, seed=number), targets=targets))
    return batches


def compute_loss(model: Transformer, batch: dict[str, Any]) -> Tensor:
    return sum_cross_entropy(model, batch, label_smoothing=0.1) / batch["ntokens"]


def check_training(form: str, backend: str) -> None:
    """One graph serves all batches, or two where sizes of the first were equal by chance."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model = make_model(make_unified, pad_mask=True, encoder_layers=1, **FORMS[form]).double().train()
    assert_compiled_training_agrees(model, make_batches(), compute_loss, backend, dynamic=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.slow  # seven norms with sizes that vary: half a minute
def test_training_agrees() -> None:
    check_training("pre-norm", "aot_eager")


@pytest.mark.slow  # a C++ compiler takes minutes
@pytest.mark.parametrize("form", FORMS)
def test_training_agrees_in_inductor(form: str) -> None:
    check_training(form, "inductor")
