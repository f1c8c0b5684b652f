"""What several tests of surgery share: a small norm, and timm models made small."""

from __future__ import annotations

import timm
import torch
from timm import layers
from torch import Tensor, nn

from un.norms import Norm

NORM_TYPES = (nn.LayerNorm, nn.RMSNorm, layers.RmsNorm, layers.RmsNorm2d, layers.SimpleNorm, layers.SimpleNorm2d)

# name: (arguments that make it small, image size)
MODELS = {
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, 32),
    "deit_tiny_distilled_patch16_224": ({"img_size": 32, "depth": 2}, 32),
    "deit3_small_patch16_224": ({"img_size": 32, "depth": 2}, 32),
    "swin_tiny_patch4_window7_224": ({"img_size": 56, "depths": (2, 1, 1, 1), "embed_dim": 24}, 56),
    "swinv2_tiny_window8_256": ({"img_size": 64, "depths": (2, 1, 1, 1), "embed_dim": 24}, 64),
    "cait_xxs24_224": ({"img_size": 32, "depth": 2}, 32),
    "convnext_atto": ({"depths": (1, 1, 1, 1)}, 64),
    "mixer_s32_224": ({"img_size": 64}, 64),
    "beit_base_patch16_224": ({"img_size": 32, "depth": 2, "embed_dim": 64, "num_heads": 2}, 32),
    "vitamin_small_224": ({"img_size": 64, "dynamic_img_size": True}, 64),  # LayerNormAct2d
}


class RowScale(Norm):
    """A stateless norm that counts its calls; its output shows which axis it normalised."""

    def __init__(self, num_features: int, *, eps: float = 1e-3, **options: object) -> None:
        super().__init__(num_features, eps=eps, **options)
        self.calls = 0

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        self.check_input(x, pad_mask)
        self.calls += 1
        y = x / (x.square().mean(dim=-1, keepdim=True) + self.eps).sqrt()
        return y if self.weight is None else y * self.weight + self.bias


def build_small(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    arguments, size = MODELS[name]
    return timm.create_model(name, num_classes=3, **arguments), torch.randn(2, 3, size, size)


def list_old_norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, NORM_TYPES)]
