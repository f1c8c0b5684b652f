"""timm's ViT and Swin with UN train compiled as they do in eager mode."""

import pytest
import torch
import torch.nn.functional as F
from timm.models import SwinTransformer, VisionTransformer

from tests.compilation import assert_compiled_training_agrees, make_unified
from un.surgery import replace_norms

CLASSES, SIZE = 5, 16
STEPS = 10  # past every phase of the norms
SIZES = {"img_size": SIZE, "patch_size": 4, "embed_dim": 8, "num_classes": CLASSES}
MODELS = {
    "vit": lambda: VisionTransformer(**SIZES, depth=1, num_heads=2),
    "swin": lambda: SwinTransformer(**SIZES, depths=(1, 2), num_heads=(1, 2), window_size=2, drop_path_rate=0.0),
}


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("vit", "eager"),
        pytest.param("vit", "inductor", marks=pytest.mark.slow),  # a C++ compiler takes minutes
        pytest.param("swin", "inductor", marks=pytest.mark.slow),
    ],
)
def test_training_agrees(name, backend):
    torch.compiler.reset()
    torch.manual_seed(0)
    model = MODELS[name]()
    replace_norms(model, lambda c, **place: make_unified(c, filtration=True, **place))
    batches = [(torch.randn(4, 3, SIZE, SIZE, dtype=torch.float64), torch.randint(CLASSES, (4,))) for _ in range(STEPS)]

    def compute_loss(model, batch):
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    assert_compiled_training_agrees(model.double().train(), batches, compute_loss, backend)
