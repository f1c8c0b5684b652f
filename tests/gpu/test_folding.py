"""Folding a model that is on a GPU: exact, without residue, and the same as on the CPU."""

import copy

import pytest
import timm
import torch

from tests.folding.helpers import OFFLINE, randomize, relative_difference
from tests.gpu.helpers import assert_same_state, move
from tests.translation.tiny import draw_sentences, make_batch, make_model
from un.folding import fold_norms
from un.surgery import replace_norms
from un.translation.generation import BeamSearch

pytestmark = pytest.mark.gpu

MODELS = {
    "vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=5
    ),
    "swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        num_classes=5,
        depths=(1, 2),
        embed_dim=12,
        num_heads=(1, 2),
        window_size=4,
    ),
}


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("norm", OFFLINE)
def test_folding_on_the_device(model_name, norm, device) -> None:
    torch.manual_seed(0)
    model = MODELS[model_name]()
    replace_norms(model, OFFLINE[norm])
    model = randomize(model)
    images = torch.randn(2, 3, 32, 32)
    expected, _ = fold_norms(copy.deepcopy(model), (images,))
    folded, report = fold_norms(model.to(device), (images.to(device),))
    assert not report.remaining, str(report)
    assert {tensor.device.type for tensor in folded.state_dict().values()} == {device.type}
    assert_same_state(folded, expected, 1e-5)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        others = torch.randn(3, 3, 32, 32).to(device, dtype)
        with torch.no_grad():
            outputs = [net.to(dtype)(others).float() for net in (model, folded)]
        assert relative_difference(*outputs) < tolerance


def test_translations_of_the_folded_transformer(device) -> None:
    model = randomize(make_model(OFFLINE["un"], True)).to(device)
    example, other = (move(make_batch(draw_sentences(8, seed=seed)), device) for seed in (0, 1))
    folded, report = fold_norms(model, example["net_input"])
    assert not report.remaining, str(report)
    search = BeamSearch(beam=3, max_len_a=1.0, max_len_b=5)
    found, expected = (search.translate(net, other) for net in (folded, model))
    for tokens, reference in zip(found, expected, strict=True):
        assert torch.equal(tokens, reference)
