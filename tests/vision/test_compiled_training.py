"""timm's ViT and Swin with UN train compiled as they do in eager mode."""

import pytest
import torch
import torch.nn.functional as F
from timm.models import SwinTransformer, VisionTransformer
from torch import Tensor, nn

from tests.compilation import assert_compiled_training_agrees, make_unified
from un.surgery import replace_norms

CLASSES, SIZE = 5, 16
STEPS = 20
SIZES = {"img_size": SIZE, "patch_size": 4, "embed_dim": 8, "num_classes": CLASSES}
MODELS = {
    "vit": lambda: VisionTransformer(**SIZES, depth=1, num_heads=2),
    "swin": lambda: SwinTransformer(**SIZES, depths=(1, 2), num_heads=(1, 2), window_size=2, drop_path_rate=0.0),
}


def check_training(name: str, backend: str) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    model = MODELS[name]()
    replace_norms(model, lambda c, **place: make_unified(c, filtration=True, **place))
    random = torch.Generator().manual_seed(1)
    batches = [
        (
            torch.randn(4, 3, SIZE, SIZE, generator=random, dtype=torch.float64),
            torch.randint(CLASSES, (4,), generator=random),
        )
        for _ in range(STEPS)
    ]
    assert_compiled_training_agrees(model.double().train(), batches, compute_loss, backend)


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def test_training_of_vit_agrees() -> None:
    check_training("vit", "aot_eager")


@pytest.mark.slow  # ten norms, half a minute
def test_training_of_swin_agrees() -> None:
    check_training("swin", "aot_eager")


@pytest.mark.slow  # a C++ compiler takes minutes
@pytest.mark.parametrize("name", MODELS)
def test_training_agrees_in_inductor(name: str) -> None:
    check_training(name, "inductor")
